"""Takes the value of an option apart: ``FIRST[,FLAG][,NAME=VALUE]…``, as QEMU's are written.

Reached from the modules beside it, each of which has its own names.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any


def split(
    text: str,
    usage: str,
    *,
    flags: Collection[str] = (),
    values: Mapping[str, Callable[[str], Any]],
) -> tuple[str, dict[str, Any]]:
    """The first word of `text`, and the rest by name: flags are True, values what their function
    makes of them. A comma that is meant is written twice.

    `usage` starts with the option's name. Raises `ConfigError` for a word that is neither, and for
    a value whose function raises `ValueError`.
    """
    option = usage.partition(" ")[0]
    first, *words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word in flags:
            found[word] = True
            continue
        if not equals or name not in values:
            comma = "" if equals else " (a comma that belongs to a name is written twice)"
            raise ConfigError(f"{option}: {word!r} is unknown{comma}; write {usage}")
        try:
            found[name] = values[name](value)
        except ValueError:
            raise ConfigError(f"{option}: {word!r} has no value that fits; write {usage}") from None
    return first, found


def number(text: str) -> int:
    """A number of decimal digits. Raises `ValueError`."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def check_mount(option: str, path: str) -> None:
    """Raise `ConfigError` naming `option` for a place in the guest that is none."""
    if path and (not path.startswith("/") or "\0" in path or "\n" in path):
        raise ConfigError(f"{option}: mount={path!r} is no path from /; try mount=/mnt/data")
