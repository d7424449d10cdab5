"""struct boot_params, the "zero page": what a Linux kernel is told by its boot loader.

Reached from the Linux loaders (linux64, bzimage), which know where the kernel went; this module
places the command line and the initrd and fills the page. Source: Linux Documentation/arch/x86/
boot.rst, "The Real-Mode Kernel Header", and zero-page.rst. Read `setupheader` beside it.
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.boot.e820 import memory_map
from pykvm.boot.setupheader import HEADER_START, SetupHeader
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.claims import Claims
    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory

ZERO_PAGE_SIZE: Final = 0x1000

# Offsets in the zero page (zero-page.rst).
ACPI_RSDP_ADDR: Final = 0x070  # u64
E820_ENTRIES: Final = 0x1E8  # u8
E820_TABLE: Final = 0x2D0  # struct boot_e820_entry[128]
E820_ENTRY: Final = struct.Struct("<QQI")
assert E820_ENTRY.size == 20


def place_cmdline(memory: GuestMemory, spec: BootSpec, claims: Claims, limit: int) -> int:
    """Put the command line, NUL-terminated, at `layout.CMDLINE`; return its gpa.

    `limit` is the most bytes the kernel reads, NUL excluded. Raises `BootError` for a longer one:
    the kernel would cut it off without a word.
    """
    limit = min(limit, layout.CMDLINE_SIZE - 1)
    if len(spec.cmdline) > limit:
        raise BootError(
            f"--append: the command line has {len(spec.cmdline)} bytes, "
            f"this kernel reads {limit}; shorten it"
        )
    claims.claim(layout.CMDLINE, len(spec.cmdline) + 1, "the command line", "--append")
    memory.write(layout.CMDLINE, spec.cmdline + b"\0")
    return layout.CMDLINE


def place_initrd(
    memory: GuestMemory, spec: BootSpec, claims: Claims, header: SetupHeader
) -> tuple[int, int]:
    """Copy the initrd, when there is one, to the top of low memory; return (gpa, size).

    Claim all of the kernel before. Raises `BootError` when it does not fit.
    """
    size = len(spec.initrd)
    if not size:
        return 0, 0
    gpa = claims.place_high(size, header.initrd_addr_max + 1)
    memory.write(gpa, spec.initrd)
    return gpa, size


def write_zero_page(
    memory: GuestMemory, spec: BootSpec, claims: Claims, header: SetupHeader
) -> dict[str, int]:
    """Place the command line and the initrd, write the zero page; return the entry's registers.

    Claims `layout.ZERO_PAGE` and the initial stack too; all of the kernel must be claimed already.
    """
    claims.claim(layout.ZERO_PAGE, ZERO_PAGE_SIZE, "boot_params")
    claims.claim_stack()
    cmdline = place_cmdline(memory, spec, claims, header.cmdline_size)
    ramdisk, ramdisk_size = place_initrd(memory, spec, claims, header)

    page = bytearray(ZERO_PAGE_SIZE)
    raw = header.with_loader_fields(cmdline, ramdisk, ramdisk_size)
    page[HEADER_START : HEADER_START + len(raw)] = raw
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, spec.rsdp or 0)
    entries = memory_map(memory)
    page[E820_ENTRIES] = len(entries)
    for i, entry in enumerate(entries):
        E820_ENTRY.pack_into(page, E820_TABLE + i * E820_ENTRY.size, *entry)
    memory.write(layout.ZERO_PAGE, page)
    return {"rsi": layout.ZERO_PAGE}
