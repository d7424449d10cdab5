"""The PCI BIOS, called without a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bioscaller import Caller
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.base import Device
from pykvm.devices.bios import CARRY, Call
from pykvm.pci import BAR0, COMMAND, PciBus, PciFunction

VENDOR, NETWORK = 0x1AF4, 0x02_00_00


class Card(PciFunction):  # a BAR, as a virtio card has
    bar_size = 0x1000


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    """On a bus with the host bridge and, in slots 1 and 2, two network cards."""
    bus = PciBus(Device())
    for device in (0x1041, 0x1041):
        bus.add(Card(VENDOR, device, NETWORK))
    caller = Caller(pci=bus)
    yield caller
    caller.close()


def pci(caller: Caller, function: int, **registers: int) -> Call:
    return caller.call(0x1A, ax=0xB100 | function, **registers)


def answered(call: Call) -> bool:
    return not call.flags & CARRY and call.ah == 0


def test_it_says_that_it_is_there(caller: Caller) -> None:
    call = pci(caller, 0x01, flags=CARRY, ecx=0xFFFF_FFFF)
    assert answered(call)
    assert call.edx.to_bytes(4, "little") == b"PCI "
    assert (call.al, call.bx, call.cl) == (1, 0x0210, 0)


@pytest.mark.parametrize(
    ("function", "what"),
    [(0x02, {"cx": 0x1041, "dx": VENDOR}), (0x03, {"ecx": NETWORK})],
    ids=["by its id", "by its class"],
)
def test_a_device_is_found(caller: Caller, function: int, what: dict[str, int]) -> None:
    found = [pci(caller, function, si=index, **what) for index in range(3)]
    assert [(call.bh, call.bl >> 3) for call in found[:2]] == [(0, 1), (0, 2)]
    assert all(answered(call) for call in found[:2])
    assert found[2].flags & CARRY
    assert found[2].ah == 0x86  # DEVICE_NOT_FOUND


def test_nobody_has_the_vendor_of_an_empty_slot(caller: Caller) -> None:
    call = pci(caller, 0x02, cx=0xFFFF, dx=0xFFFF)
    assert call.flags & CARRY
    assert call.ah == 0x83  # BAD_VENDOR_ID


@pytest.mark.parametrize(
    ("function", "kept"), [(0x08, 0xFFFF_FF00), (0x09, 0xFFFF_0000), (0x0A, 0)]
)
def test_a_register_is_read_and_the_rest_of_ecx_kept(
    caller: Caller, function: int, kept: int
) -> None:
    call = pci(caller, function, bx=1 << 3, di=0, ecx=0xFFFF_FFFF)
    assert answered(call)
    assert call.ecx == kept | 0x1041_1AF4 & ~kept


def test_a_slot_without_a_function_reads_as_ones(caller: Caller) -> None:
    call = pci(caller, 0x0A, bx=9 << 3, di=0)
    assert answered(call)
    assert call.ecx == 0xFFFF_FFFF


def test_registers_are_written_by_bytes_words_and_dwords(caller: Caller) -> None:
    card = {"bx": 2 << 3}
    assert answered(pci(caller, 0x0B, di=0x3C, ecx=0xFFFF_FF0B, **card))
    assert pci(caller, 0x08, di=0x3C, **card).cl == 0x0B
    assert answered(pci(caller, 0x0C, di=COMMAND, ecx=0xFFFF_0006, **card))
    assert pci(caller, 0x09, di=COMMAND, **card).cx == 0x0006
    assert answered(pci(caller, 0x0D, di=BAR0, ecx=0xFFFF_FFFF, **card))
    assert pci(caller, 0x0A, di=BAR0, **card).ecx == 0xFFFF_F000  # 4 KiB


@pytest.mark.parametrize(("function", "register"), [(0x09, 1), (0x0A, 2), (0x0D, 3), (0x08, 256)])
def test_a_register_that_is_none_is_refused(caller: Caller, function: int, register: int) -> None:
    call = pci(caller, function, bx=1 << 3, di=register)
    assert call.flags & CARRY
    assert call.ah == 0x87  # BAD_REGISTER_NUMBER


@given(st.integers(0, 255), *[st.integers(0, 0xFFFF_FFFF)] * 4)
def test_no_registers_make_it_raise(
    caller: Caller, function: int, ebx: int, ecx: int, edx: int, edi: int
) -> None:
    pci(caller, function, ebx=ebx, ecx=ecx, edx=edx, edi=edi)
