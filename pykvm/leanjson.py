"""JSON as the json module reads and writes it, without what that imports: re and enum take longer
than to make a machine.

Reached from `snapshot.format`. json itself calls the same C code (Modules/_json.c of CPython), and
has its own, slower one for where that is not; so have we, then: json. Read `lean` for the idea.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner
except ImportError:
    _json = False
else:
    _json = True

BLANKS = " \t\n\r"


class _Rules:
    """What `make_scanner` wants to know: the defaults of `json.loads`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # NaN, Infinity, -Infinity
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner's own


_RULES: Any = _Rules


def loads(data: bytes) -> Any:
    """As ``json.loads``, of UTF-8. Raises `ValueError` and `RecursionError`."""
    if not _json:
        import json

        return json.loads(data.decode())
    text = data.decode().strip(BLANKS)
    try:
        value, end = make_scanner(_RULES)(text, 0)
    except StopIteration:
        end = -1
    if end != len(text):
        raise ValueError("not JSON")
    return value


def dumps(value: Any) -> str:
    """As ``json.dumps(value, sort_keys=True, separators=(",", ":"))``."""
    if not _json:
        import json

        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    encode = make_encoder({}, _refuse, encode_basestring_ascii, None, ":", ",", True, False, True)
    return "".join(encode(value, 0))


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is not JSON")
