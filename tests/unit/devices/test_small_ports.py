"""The devices that are a port or two: debug exit, exit code, reset, POST, pvpanic, fw_cfg."""

from __future__ import annotations

import struct

import pytest

from pykvm.devices.debugexit import DebugExit, ExitCode
from pykvm.devices.fwcfg import FwCfg, Key
from pykvm.devices.post import KEPT, Post
from pykvm.devices.pvpanic import PanicEvent, PvPanic
from pykvm.devices.reset import ResetControl


@pytest.mark.parametrize(
    ("value", "code"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 1), (0xFFFF_FFFF, 0xFF)]
)
def test_debug_exit_leaves_with_twice_the_value_plus_one(value: int, code: int) -> None:
    codes: list[int] = []
    DebugExit(codes.append).write(0, 4, value)
    assert codes == [code]


def test_debug_exit_reads_as_zero() -> None:
    assert DebugExit(lambda code: None).read(0, 4) == 0


@pytest.mark.parametrize(("value", "code"), [(0, 0), (7, 7), (0x1FF, 0xFF)])
def test_exit_code_leaves_with_the_low_byte(value: int, code: int) -> None:
    codes: list[int] = []
    ExitCode(codes.append).write(0, 4, value)
    assert codes == [code]


@pytest.mark.parametrize("value", [0x04, 0x06, 0x0E])
def test_a_byte_with_bit_2_at_0xcf9_resets(value: int) -> None:
    resets: list[bool] = []
    ResetControl(lambda: resets.append(True)).write(1, 1, value)
    assert resets == [True]


@pytest.mark.parametrize(("offset", "size", "value"), [(1, 1, 0x02), (0, 4, ~0), (4, 4, 4)])
def test_other_writes_near_0xcf9_do_not_reset(offset: int, size: int, value: int) -> None:
    resets: list[bool] = []
    ResetControl(lambda: resets.append(True)).write(offset, size, value & 0xFFFF_FFFF)
    assert resets == []


def test_a_probe_for_pci_finds_all_ones() -> None:
    device = ResetControl(lambda: None)
    device.write(0, 4, 0x8000_0000)
    assert (device.read(0, 4), device.read(4, 4)) == (0xFFFF_FFFF, 0xFFFF_FFFF)


def test_post_remembers_the_last_codes_and_counts_delays_once() -> None:
    post = Post()
    for code in [*range(20), 0xAA, 0xAA, 0xAA]:
        post.write(0, 1, code)
    assert post.codes == bytes([*range(20 - KEPT + 1, 20), 0xAA])
    assert post.read(0, 1) == 0xAA


def test_pvpanic_offers_and_reports_both_events() -> None:
    events: list[PanicEvent] = []
    device = PvPanic(events.append)
    assert device.read(0, 1) == 3
    for value in (1, 2, 0, 4):
        device.write(0, 1, value)
    assert events == [PanicEvent.PANICKED, PanicEvent.CRASH_LOADED]


def fw_cfg_item(device: FwCfg, key: int, size: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(size))


def test_fw_cfg_tells_cpus_and_memory() -> None:
    device = FwCfg(cpus=3, memory_size=5 << 30)
    assert fw_cfg_item(device, Key.SIGNATURE, 4) == b"QEMU"
    assert struct.unpack("<H", fw_cfg_item(device, Key.NB_CPUS, 2)) == (3,)
    assert struct.unpack("<H", fw_cfg_item(device, Key.MAX_CPUS, 2)) == (3,)
    assert struct.unpack("<Q", fw_cfg_item(device, Key.RAM_SIZE, 8)) == (5 << 30,)


def test_fw_cfg_offers_neither_dma_nor_files() -> None:
    device = FwCfg(cpus=1, memory_size=1 << 20)
    assert fw_cfg_item(device, Key.ID, 4) == b"\x01\0\0\0"
    assert fw_cfg_item(device, Key.FILE_DIR, 4) == bytes(4)


def test_fw_cfg_past_an_items_end_and_for_unknown_keys_is_zero() -> None:
    device = FwCfg(cpus=1, memory_size=1 << 20)
    assert fw_cfg_item(device, Key.SIGNATURE, 6) == b"QEMU\0\0"
    assert fw_cfg_item(device, 0x7777, 2) == b"\0\0"
