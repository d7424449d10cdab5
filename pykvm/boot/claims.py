"""Who has what of guest memory: so that no two things a loader places ever overlap.

Reached from the loaders, which claim a range before they write to it. Read `layout`, whose fixed
structures are claimed first, beside it.
"""

from __future__ import annotations

from bisect import bisect_left

from pykvm import layout
from pykvm.boot.entry import CpuMode
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory

PAGE: Final = 4096

GDT_SIZE: Final = 0x20  # null, null, code, data


def page_align(size: int) -> int:
    """Round `size` up to whole pages."""
    return -(-size // PAGE) * PAGE


def size_text(size: int) -> str:
    """`size` for `--memory`: whole MiB, rounded up."""
    return f"{-(-size // layout.MIB)}M"


class Claims:
    """The claimed ranges of one guest's low memory, sorted; owned by the loader that makes it.

    What `x86.enter()` will write for `mode`, the ACPI tables and the VM generation id are claimed
    from the start.
    """

    def __init__(self, memory: GuestMemory, spec: BootSpec, mode: CpuMode) -> None:
        self.memory = memory
        memory.placed = []
        self._ranges = memory.placed  # (gpa, end, what), sorted; kept for who wants to see it
        self._high = memory.low_end  # the lowest gpa taken from the top
        if mode is not CpuMode.REAL:
            self.claim(layout.GDT, GDT_SIZE, "pykvm's GDT")
        if mode is CpuMode.LONG:
            tables = layout.PAGE_TABLES_END - layout.PAGE_TABLES
            self.claim(layout.PAGE_TABLES, tables, "pykvm's page tables")
        if spec.rsdp is not None:
            tables = layout.ACPI_TABLES_END - layout.ACPI_TABLES
            self.claim(layout.ACPI_TABLES, tables, "the ACPI tables")
            page = layout.VM_GENERATION_ID_PAGE
            self.claim(layout.VM_GENERATION_ID, page, "the VM generation id")

    def claim(self, gpa: int, size: int, what: str, option: str = "KERNEL") -> None:
        """Take [gpa, gpa + size) for `what`, which `option` asked for. Empty is always free.

        Raises `BootError` when it is not all low memory or when any of it is taken.
        """
        if size <= 0:
            return
        end = gpa + size
        if end > layout.MMIO_HOLE:
            raise BootError(
                f"{option}: {what} at {gpa:#x}, {size:#x} bytes, is not below "
                f"{layout.MMIO_HOLE:#x} (3 GiB), where loadable memory ends"
            )
        if end > self.memory.low_end:
            raise BootError(
                f"--memory: {what} needs memory up to {end:#x}, the guest's ends at "
                f"{self.memory.low_end:#x}; try --memory {size_text(end)} or more"
            )
        i = bisect_left(self._ranges, (gpa, end, what))
        for taken_gpa, taken_end, taken in self._ranges[max(i - 1, 0) : i + 1]:
            if taken_gpa < end and gpa < taken_end:
                raise BootError(
                    f"{option}: {what} at [{gpa:#x}, {end:#x}) overlaps {taken} at "
                    f"[{taken_gpa:#x}, {taken_end:#x})"
                )
        self._ranges.insert(i, (gpa, end, what))

    def claim_stack(self) -> None:
        """Take the initial stack that `x86.enter()` gives a guest without one of its own."""
        size = layout.BOOT_STACK_SIZE
        self.claim(layout.BOOT_STACK - size, size, "the initial stack")

    def above(self, limit: int) -> int:
        """Return the end of the highest range that starts below `limit`, at least 1 MiB."""
        ends = [end for gpa, end, _ in self._ranges if gpa < limit]
        return max([layout.HIGH_MEMORY, *ends])

    def place_high(self, size: int, limit: int) -> int:
        """Claim `size` bytes for an initrd or a module as high as possible; return the gpa.

        It goes on a page boundary below `limit`, above the kernel and below what was placed before:
        "as high as possible" (Linux Documentation/arch/x86/boot.rst, "Loading The Rest of The
        Kernel") keeps out of the way of the kernel's early allocations. Raises `BootError`.
        """
        top = min(limit, self.memory.low_end, self._high)
        gpa = (top - size) // PAGE * PAGE
        floor = page_align(self.above(top))
        if gpa < floor:
            needed = self.memory.low_end + floor - gpa
            ceiling = min(limit, layout.MMIO_HOLE)
            remedy = (
                f"try --memory {size_text(needed)} or more"
                if needed <= ceiling
                else f"below {ceiling:#x}, where the kernel wants it, no --memory makes room for it"
            )
            raise BootError(
                f"--initrd: {size} bytes do not fit above the kernel, which ends at {floor:#x}; "
                + remedy
            )
        self.claim(gpa, size, "the initrd", "--initrd")
        self._high = gpa
        return gpa
