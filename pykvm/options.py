"""Options as rows of a table: the parser that follows it, the help made of it.

Reached from `cli_boot` and `cli_restore`; `cli_options` has their rows. The other commands use
argparse; importing that and building its parser takes longer than to make a machine and run its
first instruction.
"""

from __future__ import annotations

from itertools import islice

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Option(Record):
    """One row of the table."""

    names: str  # the long one last: it names the attribute
    metavar: str  # its value; "" for a flag, which has none; "[=NAME]": it may be left out
    gloss: str
    default: str | None = None
    repeated: bool = False  # its values are collected in a list
    words: int = 1  # how many its value is; several make a tuple

    @property
    def value_is_optional(self) -> bool:
        return self.metavar.startswith("[=")

    @property
    def attribute(self) -> str:
        return self.names.split()[-1].lstrip("-").replace("-", "_")


class Arguments:
    """What was asked for: an attribute an option, and the words that are none."""

    def __init__(self) -> None:
        self.operands: list[str] = []


def parse(words: Sequence[str], options: Sequence[Option], command: str = "boot") -> Any:
    """Parse `words`, those of ``pykvm COMMAND``, into `Arguments`.

    Understands ``--name VALUE``, ``--name=VALUE``, ``-n VALUE`` and ``-nVALUE`` with a number. A
    value may start with a dash; one that may be left out is "" then. Raises `ConfigError` naming
    the option.
    """
    by_name = {name: option for option in options for name in option.names.split()}
    args = Arguments()
    for option in options:
        unset: Any = [] if option.repeated else option.default if option.metavar else False
        setattr(args, option.attribute, unset)
    rest = iter(words)
    for word in rest:
        if word == "-" or not word.startswith("-"):
            args.operands.append(word)
            continue
        name, equals, value = word.partition("=")
        if not word.startswith("--") and word[2:3].isdigit():  # -c4; but -cpu is a word of QEMU's
            name, equals, value = word[:2], "=", word[2:]
        found = by_name.get(name)
        if found is None:
            from pykvm.spellings import instead

            remedy = instead(name, by_name) or f"see 'pykvm {command} --help'"
            raise ConfigError(f"{name}: there is no such option; {remedy}")
        if not found.metavar:
            if equals:
                raise ConfigError(f"{name}: takes no value")
            setattr(args, found.attribute, True)
            continue
        values = [value] if equals or found.value_is_optional else []
        values += islice(rest, found.words - len(values))
        if len(values) < found.words:
            raise ConfigError(f"{name}: its value is missing: {name} {found.metavar}")
        given = values[0] if found.words == 1 else tuple(values)
        if found.repeated:
            getattr(args, found.attribute).append(given)
        else:
            setattr(args, found.attribute, given)
    return args


def number(text: str | None, option: str, parse: Callable[[str], Any]) -> Any:
    """An option's value as a number, None when it was not given. Raises `ConfigError`."""
    if text is None:
        return None
    try:
        value = parse(text)
        if not 0 <= value < float("inf"):
            raise ValueError
    except (ValueError, OverflowError):
        example = {"--timeout": "60", "--cpus": "2"}.get(option, "0x100000")
        raise ConfigError(
            f"{option}: {text!r} is not a number that fits; try {option} {example}"
        ) from None
    return value


def seconds(text: str) -> float:
    """``1.5``, ``10s``, ``2m``, ``1h``, ``1d``, as timeout(1) has them. Raises `ValueError`."""
    return float(text[:-1]) * UNITS[text[-1]] if text[-1:] in UNITS else float(text)


def describe(options: Sequence[Option]) -> str:
    """The options as lines of help, as wide as the terminal."""
    from shutil import get_terminal_size
    from textwrap import fill

    width, indent = max(40, get_terminal_size().columns - 2), " " * 24
    lines = []
    for option in options:
        space = "" if option.value_is_optional else " "
        names = f"  {', '.join(option.names.split())}{space}{option.metavar}".rstrip()
        gloss = fill(option.gloss, width, initial_indent=indent, subsequent_indent=indent)
        short = len(names) < len(indent) - 1
        lines += [names + gloss[len(names) :]] if short else [names, gloss]
    return "\n".join(lines)
