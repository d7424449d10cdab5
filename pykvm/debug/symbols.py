"""A guest's names, both ways: ``vm.symbols["start_kernel"]``, ``vm.symbols.find(0xffffffff…)``.

Reached from ``vm.symbols``, from `report` and from `explain`. From an ELF image's symbol table
(pyelftools), a System.map, or the table that Linux keeps for itself in guest memory (`kallsyms`).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pykvm.machine import Machine

FUNCTIONS: Final = ("STT_FUNC", "STT_NOTYPE")  # assembler's labels have no type
ALL: Final = (*FUNCTIONS, "STT_OBJECT")
REACH: Final = 0x1000  # how far after a symbol without a size an address is called after it
SIZE_MAX: Final = 1 << 20  # of a symbol that ends where the next begins: it may be far away
MAP_LINE: Final = re.compile(rb"^([0-9a-f]{8,16}) ([a-zA-Z]) (\S+)", re.MULTILINE)
MAP_FUNCTIONS: Final = b"tTwW"  # nm's letters: code, local or global, weak
MAP_MIN: Final = 16  # Debian's System.map has one line, which says where the real one is


class SymbolTable:
    """Names and addresses. Empty when the guest has none (yet)."""

    def __init__(self, symbols: Iterable[tuple[int, int, str]], source: str) -> None:
        """`symbols` are address, size (0: not known) and name; `source` is where they are from."""
        self._sorted = sorted(symbols)
        self._starts = [address for address, _, _ in self._sorted]
        self._by_name = {name: address for address, _, name in reversed(self._sorted)}
        self.source = source

    @classmethod
    def without_sizes(cls, symbols: Iterable[tuple[int, str]], source: str) -> SymbolTable:
        """Each symbol ends where the next begins."""
        found = sorted(symbols)
        ends = [address for address, _ in [*found[1:], *found[-1:]]]
        return cls(
            (
                (address, min(end - address, SIZE_MAX), name)
                for (address, name), end in zip(found, ends, strict=True)
            ),
            source,
        )

    def __getitem__(self, name: str) -> int:
        """The address of `name`. Raises `KeyError`."""
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._sorted)

    def find(self, address: int) -> str | None:
        """``name+0x12`` for the symbol that `address` is in, or None."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        start, size, name = self._sorted[at]
        offset = address - start
        if offset >= (size or REACH):
            return None
        return f"{name}+{offset:#x}" if offset else name

    def search(self, part: str) -> dict[str, int]:
        """The symbols whose names contain `part`."""
        return {name: at for name, at in self._by_name.items() if part in name}

    def __repr__(self) -> str:
        return f"<{len(self)} symbols from {self.source}>"


def of(machine: Machine) -> SymbolTable:
    """The symbols of what a machine runs: the image's own, or the running kernel's."""
    from pykvm.debug import kallsyms

    if machine.entry.symbols is not None:
        return of_elf(machine.entry.symbols)
    memory = machine.memory
    places = [
        (paddr, size) for _, paddr, size in machine.entry.linked if memory.contains(paddr, size)
    ]
    for gpa, size in places or [(region.gpa, region.size) for region in memory.regions]:
        found = kallsyms.read(memory.view(gpa, size))
        if found:
            return SymbolTable.without_sizes(found, "the kernel's kallsyms")
    return SymbolTable([], "nowhere: the image has no symbol table, and memory no kallsyms")


def of_elf(image: bytes | memoryview, types: tuple[str, ...] = ALL) -> SymbolTable:
    """The symbols of these types in an ELF image; none when its table is missing or damaged."""
    import io

    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    found: list[tuple[int, int, str]] = []
    try:
        table = ELFFile(io.BytesIO(image)).get_section_by_name(".symtab")
        for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
            if symbol["st_info"]["type"] in types and symbol.name:
                found.append((symbol["st_value"], symbol["st_size"], symbol.name))
    except (ELFError, ValueError, KeyError, UnicodeDecodeError):
        pass  # what was read so far is sound
    return SymbolTable(found, "the image's symbol table")


def of_system_map(text: bytes) -> SymbolTable:
    """The functions of a System.map: what `nm` printed when the kernel was built."""
    found = (
        (int(address, 16), name.decode(errors="replace"))
        for address, kind, name in MAP_LINE.findall(text)
        if kind in MAP_FUNCTIONS
    )
    return SymbolTable.without_sizes(found, "System.map")


def load(path: str) -> SymbolTable:
    """The functions that the file `path` names. Raises `ConfigError` when it has none."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"--symbols: {path}: {error.strerror}") from None
    is_elf = data[:4] == b"\x7fELF"
    symbols = of_elf(data, FUNCTIONS) if is_elf else of_system_map(data)
    if len(symbols) < (1 if is_elf else MAP_MIN):
        raise ConfigError(
            f"--symbols: {path} has no symbols; give a vmlinux that is not stripped, or the "
            "System.map of the same build"
        )
    return symbols


def beside(kernel: str) -> SymbolTable | None:
    """The symbols of the image `kernel`: its own, or those of files that came with it."""
    folder, name = os.path.split(kernel)
    version = name.partition("-")[2]
    for each in (name, f"vmlinux-{version}", f"System.map-{version}", "vmlinux", "System.map"):
        try:
            return load(os.path.join(folder, each))
        except ConfigError:
            continue
    return None
