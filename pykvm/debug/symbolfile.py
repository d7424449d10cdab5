"""Names for a guest's addresses, from a file: an ELF image with symbols, or a System.map.

Reached from `explain`. Read `report.Symbols` for the ELF's part.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pykvm.errors import ConfigError
from pykvm.report import Symbols

MAP_LINE: Final = re.compile(rb"^([0-9a-f]{8,16}) ([a-zA-Z]) (\S+)", re.MULTILINE)
FUNCTION_TYPES: Final = b"tTwW"  # nm's letters: code, local or global, weak
FEW: Final = 16  # Debian's System.map has one line, which says where the real one is


class SystemMap(Symbols):
    """The functions of a System.map: what `nm` printed when the kernel was built."""

    def __init__(self, text: bytes) -> None:
        super().__init__(None)
        found = sorted(
            (int(address, 16), name.decode(errors="replace"))
            for address, kind, name in MAP_LINE.findall(text)
            if kind in FUNCTION_TYPES
        )
        ends = [start for start, _ in found[1:]] + [start for start, _ in found[-1:]]
        self._functions = [
            (start, end - start, name) for (start, name), end in zip(found, ends, strict=True)
        ]
        self._starts = [start for start, _ in found]


def load(path: str) -> Symbols:
    """The symbols of `path`. Raises `ConfigError` when it has none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"--symbols: {path}: {error.strerror}") from None
    is_elf = data[:4] == b"\x7fELF"
    symbols = Symbols(data) if is_elf else SystemMap(data)
    if len(symbols) < (1 if is_elf else FEW):
        raise ConfigError(
            f"--symbols: {path} has no symbols; give a vmlinux that is not stripped, or the "
            "System.map of the same build"
        )
    return symbols


def beside(kernel: str) -> Symbols | None:
    """The symbols of the image `kernel`: its own, or those of files that came with it."""
    path = Path(kernel)
    version = path.name.partition("-")[2]
    names = (path.name, f"vmlinux-{version}", f"System.map-{version}", "vmlinux", "System.map")
    for candidate in map(path.with_name, names):
        try:
            return load(str(candidate))
        except ConfigError:
            continue
    return None
