"""A guest's names, both ways: ``vm.symbols["start_kernel"]``, ``vm.symbols.find(0xffffffff…)``.

Reached from ``vm.symbols``. From the image's own symbol table (pyelftools) or, when it was
stripped, from the one that Linux keeps for itself in guest memory (`kallsyms`).
"""

from __future__ import annotations

import io
from bisect import bisect_right
from typing import TYPE_CHECKING

from pykvm.debug import kallsyms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.machine import Machine

REACH = 1 << 20  # how far after a symbol an address may still be called after it


class SymbolTable:
    """Names and addresses. Empty when the guest has none (yet)."""

    def __init__(self, symbols: list[tuple[int, str]], source: str) -> None:
        self._sorted = sorted(symbols)
        self._starts = [address for address, _ in self._sorted]
        self._by_name = {name: address for address, name in reversed(self._sorted)}
        self.source = source

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
        """``name+0x12`` for the symbol at or before `address`, or None."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address - self._starts[at] >= REACH:
            return None
        start, name = self._sorted[at]
        return f"{name}+{address - start:#x}" if address > start else name

    def search(self, part: str) -> dict[str, int]:
        """The symbols whose names contain `part`."""
        return {name: at for name, at in self._by_name.items() if part in name}

    def __repr__(self) -> str:
        return f"<{len(self)} symbols from {self.source}>"


def of(machine: Machine) -> SymbolTable:
    """The symbols of what a machine runs."""
    if machine.entry.symbols is not None:
        return SymbolTable(_from_elf(machine.entry.symbols), "the image's symbol table")
    memory = machine.memory
    places = [
        (paddr, size) for _, paddr, size in machine.entry.linked if memory.contains(paddr, size)
    ]
    for gpa, size in places or [(region.gpa, region.size) for region in memory.regions]:
        found = kallsyms.read(memory.view(gpa, size))
        if found:
            return SymbolTable(found, "the kernel's kallsyms")
    return SymbolTable([], "nowhere: the image has no symbol table, and memory no kallsyms")


def _from_elf(image: bytes | memoryview) -> list[tuple[int, str]]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        table = ELFFile(io.BytesIO(image)).get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            return []
        return [
            (symbol["st_value"], symbol.name)
            for symbol in table.iter_symbols()
            if symbol.name and symbol["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE", "STT_OBJECT")
        ]
    except (ELFError, ValueError, KeyError, UnicodeDecodeError):
        return []
