"""A guest's names, both ways: ``vm.symbols["start_kernel"]``, ``vm.symbols.find(0xffffffff…)``.

Reached from ``vm.symbols``, from `report` and from `explain`. From an ELF image's symbol table
(pyelftools finds it), a System.map, or the table that Linux keeps of itself, in guest memory or in
its image (`kallsyms`).
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from pykvm.debug import kallsyms
from pykvm.errors import BootError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pykvm.boot.files import ImageFile
    from pykvm.machine import Machine

# Types of symbols (System V ABI, "Symbol Table", figure 4-19).
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
FUNCTIONS: Final = (STT_FUNC, STT_NOTYPE)  # assembler's labels have no type
ALL: Final = (*FUNCTIONS, STT_OBJECT)
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
PER_CPU: Final = ".data..percpu"  # Linux's section for what each CPU has a copy of, linked at 0
# Elf64_Sym: name, info, other, shndx, value, size. Elf32_Sym has the last two after the name.
ELF64_SYM, ELF32_SYM = struct.Struct("<IBBHQQ"), struct.Struct("<IIIBBH")
REACH: Final = 0x1000  # how far after a symbol without a size an address is called after it
SIZE_MAX: Final = 1 << 20  # of a symbol that ends where the next begins: it may be far away
MAP_LINE: Final = re.compile(rb"^([0-9a-f]{8,16}) ([a-zA-Z]) (\S+)", re.MULTILINE)
MAP_FUNCTIONS: Final = b"tTwW"  # nm's letters: code, local or global, weak
MAP_MIN: Final = 16  # Debian's System.map has one line, which says where the real one is


class SymbolTable:
    """Names and addresses. Empty when the guest has none (yet)."""

    def __init__(
        self,
        symbols: Iterable[tuple[int, int, str]],
        source: str,
        numbers: Iterable[tuple[int, str]] = (),
    ) -> None:
        """`symbols` are address, size (0: not known) and name; `source` is where they are from.
        `numbers` have names too, but nothing is there: a per-CPU variable's offset, a size."""
        self._sorted = sorted(symbols)
        self._starts = [address for address, _, _ in self._sorted]
        self._by_name = {name: number for number, name in numbers}
        self._by_name |= {name: address for address, _, name in reversed(self._sorted)}
        self.source = source

    @classmethod
    def without_sizes(
        cls,
        symbols: Iterable[tuple[int, str]],
        source: str,
        numbers: Iterable[tuple[int, str]] = (),
    ) -> SymbolTable:
        """Each symbol ends where the next begins."""
        found = sorted(symbols)
        ends = [address for address, _ in [*found[1:], *found[-1:]]]
        return cls(
            (
                (address, min(end - address, SIZE_MAX), name)
                for (address, name), end in zip(found, ends, strict=True)
            ),
            source,
            numbers,
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


NONE: Final = SymbolTable([], "nowhere: the image has no symbol table, and memory no kallsyms")
# Those where the guest unpacks its kernel itself, wherever it likes.
LINUX_PROTOCOLS: Final = ("bzimage64", "linux32", "linux16")


def of(machine: Machine) -> SymbolTable:
    """The symbols of what a machine runs: the image's own, or the running kernel's."""
    if machine.entry.symbols is not None:
        return of_elf(machine.entry.symbols)
    found = next(filter(None, map(kallsyms.read, _where_linux_may_be(machine))), None)
    return of_linux(found) if found else NONE


def _where_linux_may_be(machine: Machine) -> Iterator[memoryview]:
    memory = machine.memory
    for _, gpa, size in machine.entry.linked:
        if memory.contains(gpa, size):
            yield memory.view(gpa, size)
    if machine.entry.protocol in LINUX_PROTOCOLS:
        from pykvm.snapshot.pages import touched  # not all of memory: it would be there afterwards

        for offset, size in touched(memory):
            yield memory.at_offset(offset, size)


def place(machine: Machine, address: int) -> str | None:
    """As `SymbolTable.find`, for an address that the code of `machine` runs at: a kernel's first
    instructions run where it was loaded, and not yet where it is linked."""
    table = machine.symbols
    linked = (
        vaddr + address - paddr
        for vaddr, paddr, size in machine.entry.linked
        if 0 <= address - paddr < size
    )
    return next(filter(None, map(table.find, (address, *linked))), None)


def of_elf(image: bytes | memoryview, types: tuple[int, ...] = ALL) -> SymbolTable:
    """The symbols of these types in an ELF image; none when its table is missing or damaged."""
    import io

    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    found, numbers = [], []
    try:
        elf = ELFFile(io.BytesIO(image))
        per_cpu = {n for n, each in enumerate(elf.iter_sections()) if each.name == PER_CPU}
        table = elf.get_section_by_name(".symtab")
        names = elf.get_section(table["sh_link"]).data() if table else b""
        entries = _elf_symbols(table.data(), elf.elfclass) if table else ()
        for name_at, kind, section, value, size in entries:
            name = names[name_at : names.index(0, name_at)].decode()
            if kind & 0xF not in types or not name or section == SHN_UNDEF:
                continue
            if section == SHN_ABS or section in per_cpu:
                numbers.append((value, name))
            else:
                found.append((value, size, name))
    except (ELFError, ValueError, KeyError, struct.error, AttributeError):
        pass  # what was read so far is sound
    return SymbolTable(found, "the image's symbol table", numbers)


def _elf_symbols(table: bytes, bits: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Name, info, section, value and size of each. pyelftools takes 40 us a symbol, which for a
    kernel with all of them is seconds."""
    if bits == 64:
        for name, info, _, section, value, size in ELF64_SYM.iter_unpack(table):
            yield name, info, section, value, size
    else:
        for name, value, size, info, _, section in ELF32_SYM.iter_unpack(table):
            yield name, info, section, value, size


def of_linux(found: Iterable[kallsyms.Symbol]) -> SymbolTable:
    """What a Linux kernel says of itself."""
    return SymbolTable.without_sizes(
        [(address, name) for address, kind, name in found if kind != kallsyms.ABSOLUTE],
        "the kernel's kallsyms",
        [(number, name) for number, kind, name in found if kind == kallsyms.ABSOLUTE],
    )


def of_system_map(text: bytes) -> SymbolTable:
    """The functions of a System.map: what `nm` printed when the kernel was built."""
    found = (
        (int(address, 16), name.decode(errors="replace"))
        for address, kind, name in MAP_LINE.findall(text)
        if kind in MAP_FUNCTIONS
    )
    return SymbolTable.without_sizes(found, "System.map")


def load(path: str) -> SymbolTable:
    """The names in the file `path`: an ELF image's functions, a System.map's, or all those that a
    Linux kernel has of itself. Raises `ConfigError` when there are none."""
    from pykvm.boot.files import open_image

    try:
        image = open_image(path)
    except BootError as error:
        raise ConfigError(f"--symbols: {str(error).removeprefix('KERNEL: ')}") from None
    symbols, enough = of_elf(image.data, FUNCTIONS), 1
    if not symbols:
        symbols = of_linux(read_kernel(image))
    if not symbols:
        symbols, enough = of_system_map(bytes(image.data)), MAP_MIN
    if len(symbols) < enough:
        raise ConfigError(
            f"--symbols: {path} has no symbols; give a vmlinux that is not stripped, a kernel with "
            "kallsyms, or the System.map of the same build"
        )
    return symbols


def read_kernel(image: ImageFile) -> list[kallsyms.Symbol]:
    """What the Linux kernel in an image file, a bzImage or a vmlinux, says of itself, if any."""
    from pykvm.boot.detect import is_bzimage
    from pykvm.boot.vmlinux import inside

    try:
        if is_bzimage(image.data):
            with inside(image) as vmlinux:
                return kallsyms.read(vmlinux.image)
    except BootError:  # what it holds cannot be unpacked
        pass
    return kallsyms.read(image.data)


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
