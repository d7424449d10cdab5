"""The memory map a guest is told: which gpa ranges are RAM and which are the platform's.

Reached from every loader that passes a map on (boot_params, start_info, multiboot); the BIOS
service for 16-bit guests answers from the same list. Read `layout`, which draws the map.
"""

from __future__ import annotations

from pykvm import layout
from pykvm.boot.entry import E820, E820_RAM, E820_RESERVED
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.memory import GuestMemory


def memory_map(memory: GuestMemory) -> list[E820]:
    """Return the map in ascending order, without overlaps.

    The EBDA, the VGA window and the ACPI tables are one reserved range although they are backed by
    memory. The MMIO hole is not listed: what the map leaves out is not RAM (ACPI 6.5 §15.4
    E820 Assumptions and Limitations).
    """
    conventional = min(layout.EBDA, memory.low_end)
    entries = [E820(0, conventional, E820_RAM)]
    if memory.low_end > layout.EBDA:
        reserved = min(layout.HIGH_MEMORY, memory.low_end) - layout.EBDA
        entries.append(E820(layout.EBDA, reserved, E820_RESERVED))
    if memory.low_end > layout.HIGH_MEMORY:
        above = memory.low_end - layout.HIGH_MEMORY
        entries.append(E820(layout.HIGH_MEMORY, above, E820_RAM))
    entries += (E820(high.gpa, high.size, E820_RAM) for high in memory.regions[1:])
    return entries
