"""int 1Ah AH=B1h: the PCI BIOS, by which a guest in real mode finds its devices.

Reached from `bios`, on a machine with a PCI bus. iPXE's BIOS build asks nobody else. Source: PCI
BIOS Specification 2.1, §4 PCI BIOS Functions. Read `pykvm.pci` for the bus.
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING
from pykvm.pci import CONFIG_SIZE, SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from pykvm.devices.bios import Call
    from pykvm.pci import PciBus

SIGNATURE: Final = int.from_bytes(b"PCI ", "little")
VERSION: Final = 0x0210
MECHANISM_1: Final = 1 << 0  # in AL: ports 0xCF8 and 0xCFC

# AH of an answer (§4.1, Table of return codes).
SUCCESSFUL: Final = 0x00
FUNC_NOT_SUPPORTED: Final = 0x81
BAD_VENDOR_ID: Final = 0x83
DEVICE_NOT_FOUND: Final = 0x86
BAD_REGISTER_NUMBER: Final = 0x87

SIZES: Final = (1, 2, 4)  # of functions 08h to 0Ah, and of 0Bh to 0Dh


def serve(call: Call, bus: PciBus) -> int:
    """Answer one call; returns what belongs in AH, whose carry flag is set if it is not 0."""
    if call.al == 0x01:  # PCI BIOS present
        call.edx = SIGNATURE
        call.al, call.bx, call.cl = MECHANISM_1, VERSION, 0  # the last bus is 0
        return SUCCESSFUL
    if call.al == 0x02:
        if call.dx == 0xFFFF:
            return BAD_VENDOR_ID
        wanted = call.cx << 16 | call.dx
        return _find(call, bus, lambda slot: _read(bus, slot, 0x00) == wanted)
    if call.al == 0x03:
        class_code = call.ecx & 0xFF_FFFF
        return _find(call, bus, lambda slot: _read(bus, slot, 0x08) >> 8 == class_code)
    if 0x08 <= call.al <= 0x0D:
        return _access(call, bus)
    return FUNC_NOT_SUPPORTED


def _read(bus: PciBus, slot: int, offset: int) -> int:
    return bus.read_config(slot << 11 | offset, 4)


def _find(call: Call, bus: PciBus, fits: Callable[[int], bool]) -> int:
    """Put the SI-th function that `fits` into BX. Ours are all function 0 of a slot of bus 0."""
    with bus.lock:
        found = [slot for slot in range(SLOTS) if _read(bus, slot, 0) != 0xFFFF_FFFF and fits(slot)]
    if call.si >= len(found):
        return DEVICE_NOT_FOUND
    call.bx = found[call.si] << 3
    return SUCCESSFUL


def _access(call: Call, bus: PciBus) -> int:
    """Functions 08h to 0Dh: read or write register DI of the function that BX names."""
    writes, width = divmod(call.al - 0x08, len(SIZES))
    size = SIZES[width]
    if call.di % size or call.di >= CONFIG_SIZE:
        return BAD_REGISTER_NUMBER
    address = call.bx << 8 | call.di
    mask = (1 << 8 * size) - 1
    with bus.lock:
        if writes:
            bus.write_config(address, size, call.ecx & mask)
        else:
            call.ecx = call.ecx & ~mask | bus.read_config(address, size)
    return SUCCESSFUL
