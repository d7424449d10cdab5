"""PVH: the 32-bit entry of an ELF kernel that a Xen note names, with start_info in EBX.

Reached from `boot.load()`. Source: Xen docs/misc/pvh.pandoc, "x86/HVM direct boot ABI", and Xen
xen/include/public/arch-x86/hvm/start_info.h. Linux has the entry (CONFIG_PVH), FreeBSD and
unikernels too.
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.boot import elf
from pykvm.boot.bootparams import place_cmdline
from pykvm.boot.claims import Claims, page_align
from pykvm.boot.e820 import memory_map
from pykvm.boot.entry import CpuMode, Entry
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory

ELFNOTE_GUEST_OS: Final = 6  # XEN_ELFNOTE_GUEST_OS: a string
ELFNOTE_PHYS32_ENTRY: Final = 18  # XEN_ELFNOTE_PHYS32_ENTRY: the entry, 4 or 8 bytes

START_MAGIC: Final = 0x336EC578  # "xEn3" with the 0x80 bit of the "E" set
START_INFO: Final = struct.Struct("<IIIIQQQQII")  # magic version flags nr_modules paddr…
MODULE: Final = struct.Struct("<QQQQ")  # paddr size cmdline_paddr reserved
MEMORY_MAP_ENTRY: Final = struct.Struct("<QQII")  # addr size type reserved
assert (START_INFO.size, MODULE.size, MEMORY_MAP_ENTRY.size) == (56, 32, 24)
START_INFO_SIZE: Final = 0x1000


def entry_of(kernel: elf.Elf) -> int | None:
    """The 32-bit entry's physical address, or None for a kernel without the note."""
    for name, kind, desc in kernel.notes():
        if name == b"Xen" and kind == ELFNOTE_PHYS32_ENTRY and len(desc) in (4, 8):
            return int.from_bytes(desc, "little")
    return None


def is_linux(kernel: elf.Elf) -> bool:
    """Whether the notes are those of a Linux kernel."""
    for name, kind, desc in kernel.notes():
        if name == b"Linux":
            return True
        if name == b"Xen" and kind == ELFNOTE_GUEST_OS and desc.rstrip(b"\0") == b"linux":
            return True
    return False


def load(image: memoryview, memory: GuestMemory, spec: BootSpec, file: int | None = None) -> Entry:
    """Load an ELF kernel and enter it by its PVH note.

    `file` is the descriptor of the file that `image` maps, if any. Raises `BootError`.
    """
    kernel = elf.parse(image)
    rip = entry_of(kernel)
    if rip is None:
        raise BootError("KERNEL: no PVH entry: it has no Xen ELF note of type 18 (CONFIG_PVH=y)")
    if not any(0 <= rip - s.paddr < s.memory_size for s in kernel.loadable):
        raise BootError(f"KERNEL: its PVH entry {rip:#x} lies in no loadable segment")
    claims = Claims(memory, spec, CpuMode.PROTECTED)
    claims.claim(layout.START_INFO, START_INFO_SIZE, "start_info")
    claims.claim_stack()
    elf.load_segments(kernel, memory, claims, file)
    cmdline = place_cmdline(memory, spec, claims, layout.CMDLINE_SIZE - 1)
    modules = _place_modules(memory, spec, claims)
    memory.write(layout.START_INFO, _start_info(memory, spec, cmdline, modules))
    regs = {"rbx": layout.START_INFO}
    return Entry("pvh", CpuMode.PROTECTED, rip, regs, symbols=kernel.symbols, linked=kernel.linked)


def _place_modules(
    memory: GuestMemory, spec: BootSpec, claims: Claims
) -> list[tuple[int, int, bytes]]:
    """Copy the initrd (module 0, as Linux takes it) and the modules; return (gpa, size, string)."""
    wanted = [(spec.initrd, b"")] if spec.initrd else []
    wanted += spec.modules
    placed = []
    for data, string in wanted:
        gpa = claims.place_high(page_align(len(data)), memory.low_end)
        memory.write(gpa, data)
        placed.append((gpa, len(data), string))
    return placed


def _start_info(
    memory: GuestMemory, spec: BootSpec, cmdline: int, modules: list[tuple[int, int, bytes]]
) -> bytes:
    """struct hvm_start_info, version 1, with its module list and memory map behind it."""
    blob = bytearray(START_INFO.size)

    def put(data: bytes) -> int:
        blob.extend(bytes(-len(blob) % 8))
        gpa = layout.START_INFO + len(blob)
        blob.extend(data)
        return gpa

    entries = memory_map(memory)
    map_gpa = put(b"".join(MEMORY_MAP_ENTRY.pack(*entry, 0) for entry in entries))
    strings = [put(string + b"\0") if string else 0 for _, _, string in modules]
    module_list = put(
        b"".join(
            MODULE.pack(gpa, size, string, 0)
            for (gpa, size, _), string in zip(modules, strings, strict=True)
        )
    )
    if len(blob) > START_INFO_SIZE:
        raise BootError(
            f"--module: the modules' list and strings take {len(blob)} bytes of {START_INFO_SIZE}; "
            "pass fewer"
        )
    START_INFO.pack_into(
        blob, 0, START_MAGIC, 1, 0, len(modules), module_list if modules else 0, cmdline,
        spec.rsdp or 0, map_gpa, len(entries), 0,
    )  # fmt: skip
    return bytes(blob)
