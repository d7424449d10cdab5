"""Flat binaries: bytes at an address, entered in the mode the user names.

Reached from `boot.load()` for ``--mode``, ``--load``, ``--entry`` and ``--protocol flat``. Without
them a real-mode binary goes where a PC's BIOS puts a boot sector, any other to 1 MiB.
"""

from __future__ import annotations

from pykvm import layout
from pykvm.boot.claims import Claims
from pykvm.boot.entry import CpuMode, Entry
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory

BOOT_DRIVE: Final = 0x80  # in DL, where a boot sector looks: the first hard disk
REAL_MODE_END: Final = 0x10_0000  # 20 address lines


def load(image: memoryview, memory: GuestMemory, spec: BootSpec) -> Entry:
    """Copy `image` to `spec.load` and enter it at `spec.entry`. Raises `BootError`."""
    if spec.initrd or spec.modules:
        raise BootError("--initrd: a flat binary has no way to be told of one; drop the option")
    mode = spec.mode or CpuMode.REAL
    real = mode is CpuMode.REAL
    gpa = spec.load if spec.load is not None else layout.BOOT_SECTOR if real else layout.HIGH_MEMORY
    entry = spec.entry if spec.entry is not None else gpa
    if gpa < 0:
        raise BootError(f"--load: {gpa} is not an address")
    if not gpa <= entry < gpa + len(image):
        raise BootError(
            f"--entry: {entry:#x} is not in the image, which is at [{gpa:#x}, "
            f"{gpa + len(image):#x}); see --load"
        )
    if real and entry >= REAL_MODE_END:
        raise BootError(
            f"--entry: {entry:#x} is out of real mode's reach (1 MiB); lower --load or take "
            "--mode protected"
        )
    claims = Claims(memory, spec, mode)
    if not real:
        claims.claim_stack()
    claims.claim(gpa, len(image), "the flat binary", "--load")
    memory.write(gpa, image)
    return _real_entry(gpa, entry) if real else Entry("flat", mode, entry)


def _real_entry(gpa: int, entry: int) -> Entry:
    """CS:IP at the entry, all data segments alike, the stack growing down from the image.

    Below 64 KiB every selector is 0, so that a boot sector finds itself at 0000:7c00.
    """
    selector = (entry & ~0xFFFF) >> 4
    segments = dict.fromkeys(("cs", "ds", "es", "fs", "gs", "ss"), selector)
    regs = {"rdx": BOOT_DRIVE, "rsp": gpa & 0xFFFF}
    return Entry("flat", CpuMode.REAL, entry & 0xFFFF, regs, segments)
