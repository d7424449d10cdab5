"""An ELF file with a stripped kernel's names and none of its bytes: what gdb wants of a vmlinux.

Reached from ``pykvm kernel symbols``. gdb reads the bytes from the guest. It takes a name for a
function's when it is in a section with code: so there is a section for each run of functions and
for each run of data. Read `kallsyms` for where the names come from. Source: System V ABI, "Object
Files". ::

    ELF header | section headers: null, .text, .data, .text.1 …, .symtab, .strtab, .shstrtab |
    symbols | their names | the sections' names
"""

from __future__ import annotations

import struct
from contextlib import suppress
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Final

from pykvm import cache
from pykvm.boot.files import open_image
from pykvm.boot.vmlinuxcache import ENTRIES_MAX
from pykvm.debug import symbols
from pykvm.debug.kallsyms import ABSOLUTE
from pykvm.debug.symbols import ELF64_SYM, MAP_FUNCTIONS, SHN_ABS, STT_FUNC, STT_NOTYPE, STT_OBJECT
from pykvm.errors import ConfigError
from pykvm.lean import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pykvm.boot.files import ImageFile
    from pykvm.boot.kernels import Kernel
    from pykvm.debug.kallsyms import Symbol

PAGE: Final = 4096
EHDR, SHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)  # ELFCLASS64, ELFDATA2LSB, EV_CURRENT
ET_EXEC, EM_X86_64 = 2, 62
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 2, 3, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STB_GLOBAL: Final = 1 << 4


class Run(Record):
    """Neighbours of one kind, and the section they are in."""

    code: bool
    start: int
    end: int
    symbols: Sequence[Symbol]


def write(kernel: Kernel, output: Path | None = None) -> Path:
    """An ELF file with the symbols of `kernel`, at `output` or in the cache; returns where.

    Raises `ConfigError` when it has none or the file cannot be written.
    """
    image = open_image(kernel.image)
    for own in (kernel.vmlinux, kernel.image):
        if own is not None and symbols.of_elf(open_image(own).data):
            return own if output is None else _put(output, own.read_bytes())
    if output is not None:
        return _put(output, _of_linux(kernel, image))
    folder = cache.cache_dir() / "symbols"
    folder.mkdir(exist_ok=True)
    place = folder / f"{kernel.name}-{sha256(image.data).hexdigest()[:16]}"
    if not place.exists():
        cache.atomic_write(place, _of_linux(kernel, image))
        with suppress(OSError):  # another pykvm may be at it too
            cache.keep_newest(folder.glob("[!.]*"), ENTRIES_MAX)
    return place


def _put(output: Path, data: bytes) -> Path:
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ConfigError(
            f"--output: {output}: {error.strerror}; name a file that can be written"
        ) from None
    return output


def _of_linux(kernel: Kernel, image: ImageFile) -> bytes:
    found = symbols.read_kernel(image)
    if not found:
        raise ConfigError(
            f"KERNEL: {kernel.image} has no symbols, and no kallsyms either; give gdb the vmlinux "
            "of its build"
        )
    return make(found)


def make(found: Iterable[Symbol]) -> bytes:
    """The file for these symbols, at least one of them with a place."""
    rows = list(found)
    runs = list(_runs([symbol for symbol in rows if symbol[1] != ABSOLUTE]))
    entries, names = [ELF64_SYM.pack(0, 0, 0, 0, 0, 0)], bytearray(b"\0")

    def add(name: str, kind: int, section: int, address: int, end: int) -> None:
        entries.append(
            ELF64_SYM.pack(len(names), STB_GLOBAL | kind, 0, section, address, end - address)
        )
        names.extend(name.encode() + b"\0")

    for section, run in enumerate(runs, 1):
        starts = sorted({address for address, _, _ in run.symbols})
        ends = dict(zip(starts, [*starts[1:], run.end], strict=True))
        for address, _, name in run.symbols:
            add(name, STT_FUNC if run.code else STT_OBJECT, section, address, ends[address])
    for number, kind, name in rows:
        if kind == ABSOLUTE:
            add(name, STT_NOTYPE, SHN_ABS, number, number)
    return _file(runs, b"".join(entries), bytes(names))


def _runs(rows: list[Symbol]) -> Iterator[Run]:
    """Each ends where the next begins; marks of the linker's in between begin none."""
    pieces = [
        (code, list(group))
        for code, group in groupby(rows, lambda symbol: symbol[1].encode() in MAP_FUNCTIONS)
    ]
    joined: list[tuple[bool, list[Symbol]]] = []
    for (code, group), after in zip(pieces, [*pieces[1:], None], strict=True):
        empty = after is not None and after[1][0][0] == group[0][0]
        if joined and (empty or joined[-1][0] == code):
            joined[-1][1].extend(group)
        else:
            joined.append((code, group))
    for (code, group), following in zip(joined, [*joined[1:], None], strict=True):
        end = following[1][0][0] if following else (group[-1][0] // PAGE + 1) * PAGE
        yield Run(code, group[0][0], end, group)


def _file(runs: list[Run], symtab: bytes, strtab: bytes) -> bytes:
    headers, names, count = [bytes(SHDR.size)], bytearray(b"\0"), len(runs) + 4
    at = EHDR.size + count * SHDR.size

    def add(name: str, kind: int, flags: int, start: int, size: int, link: int, *rest: int) -> None:
        nonlocal at
        headers.append(SHDR.pack(len(names), kind, flags, start, at, size, link, *rest))
        names.extend(name.encode() + b"\0")
        at += 0 if kind == SHT_NOBITS else size

    for number, run in enumerate(runs):
        name = (".text" if run.code else ".data") + (f".{number}" if number > 1 else "")
        flags = SHF_ALLOC | (SHF_EXECINSTR if run.code else SHF_WRITE)
        add(name, SHT_NOBITS, flags, run.start, run.end - run.start, 0, 0, 16, 0)
    # Of a symbol table: the section of its names, how many symbols are local, the size of one.
    add(".symtab", SHT_SYMTAB, 0, 0, len(symtab), len(runs) + 2, 1, 8, ELF64_SYM.size)
    add(".strtab", SHT_STRTAB, 0, 0, len(strtab), 0, 0, 1, 0)
    add(".shstrtab", SHT_STRTAB, 0, 0, len(names) + len(".shstrtab") + 1, 0, 0, 1, 0)
    of_segments, of_sections = (0, 0), (SHDR.size, count, count - 1)
    header = EHDR.pack(
        IDENT, ET_EXEC, EM_X86_64, 1, 0, 0, EHDR.size, 0, EHDR.size, *of_segments, *of_sections
    )
    return b"".join([header, *headers, symtab, strtab, bytes(names)])
