"""The 16-bit Linux entry: the setup code runs in real mode and asks the BIOS what it must know.

Reached from `bzimage` for images that have no other entry, such as iPXE's .lkrn. The BIOS services
it calls live at `layout.BIOS_ROM`. Source: Linux Documentation/arch/x86/boot.rst, "Sample Boot
Configuration" and "Running the Kernel"::

    SETUP_CODE + 0x0000   boot sector and setup code
               + ......   heap
               + 0xe000   stack, growing down
    CMDLINE               command line
    1 MiB                 protected-mode code
"""

from __future__ import annotations

from pykvm import layout
from pykvm.boot.bootparams import place_cmdline, place_initrd
from pykvm.boot.claims import Claims
from pykvm.boot.entry import CpuMode, Entry
from pykvm.boot.setupheader import HEADER_START, Field, LoadFlags, SetupHeader
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory

STACK_TOP: Final = 0xE000
SETUP_MAX: Final = 0x8000  # "0x0000-0x7FFF Real mode kernel"
VERSION_MIN: Final = 0x202  # cmd_line_ptr; Linux 2.4.0-test3 and later


def load(image: memoryview, memory: GuestMemory, spec: BootSpec, header: SetupHeader) -> Entry:
    """Load both parts of a bzImage and enter its setup code. Raises `BootError`."""
    if header.version < VERSION_MIN:
        raise BootError(
            f"KERNEL: boot protocol {header.version >> 8}.{header.version & 0xFF:02} is older than "
            "2.02 (Linux 2.4)"
        )
    if not header[Field.loadflags] & LoadFlags.LOADED_HIGH:
        raise BootError("KERNEL: a zImage, made to be loaded below 1 MiB; build a bzImage")
    setup_size = header.setup_size
    if setup_size > SETUP_MAX:
        raise BootError(f"KERNEL: damaged: {setup_size} bytes of setup code, {SETUP_MAX} at most")
    part = header.protected_part(image)
    claims = Claims(memory, spec, CpuMode.REAL)
    claims.claim(layout.SETUP_CODE, STACK_TOP, "the setup code, its heap and stack")
    size = max(len(part), header[Field.init_size])
    claims.claim(layout.HIGH_MEMORY, size, "the kernel")
    cmdline = place_cmdline(memory, spec, claims, header.cmdline_size)
    ramdisk, ramdisk_size = place_initrd(memory, spec, claims, header)
    header = header.replace(
        {
            Field.loadflags: header[Field.loadflags] | LoadFlags.CAN_USE_HEAP,
            Field.heap_end_ptr: STACK_TOP - 0x200,
        }
    )
    memory.write(layout.HIGH_MEMORY, part)
    memory.write(layout.SETUP_CODE, image[:setup_size])
    raw = header.with_loader_fields(cmdline, ramdisk, ramdisk_size)
    memory.write(layout.SETUP_CODE + HEADER_START, raw)

    # "ds = es = ss = seg, [...] jmp_far(seg + 0x20, 0)": the entry is at offset 0x200.
    segment = layout.SETUP_CODE >> 4
    segments = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), segment)
    segments["cs"] = segment + 0x20
    return Entry("linux16", CpuMode.REAL, 0, {"rsp": STACK_TOP}, segments)
