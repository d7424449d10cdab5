"""The bus finds the device at an address, and nothing where none is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus
from pykvm.devices.base import Device, FunctionDevice
from pykvm.errors import ConfigError


class Recorder(Device):
    """Remembers every access; answers a read with more bits than fit."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.accesses: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size, 0))
        return 0xFFEE_DDCC_BBAA_9988_7766

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size, value))


def test_device_sees_the_offset_in_its_range() -> None:
    bus, device = Bus("port"), Recorder()
    bus.add(0x500, 8, device)
    bus.write(0x503, 2, 0xABCD)
    bus.read(0x507, 1)
    assert device.accesses == [("write", 3, 2, 0xABCD), ("read", 7, 1, 0)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_answer_is_cut_to_the_size_of_the_read(size: int) -> None:
    bus = Bus("port")
    bus.add(0, 1, Recorder())
    assert bus.read(0, size) == 0xDDCC_BBAA_9988_7766 & (1 << 8 * size) - 1


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_read_where_no_device_is_returns_all_ones(size: int) -> None:
    bus = Bus("mmio")
    bus.add(0x1000, 0x1000, Recorder())
    assert {bus.read(at, size) for at in (0, 0xFFF, 0x2000)} == {(1 << 8 * size) - 1}


def test_write_where_no_device_is_does_nothing() -> None:
    bus, device = Bus("mmio"), Recorder()
    bus.add(0x1000, 0x1000, device)
    bus.write(0xFFF, 1, 1)
    bus.write(0x2000, 1, 1)
    assert device.accesses == []


@pytest.mark.parametrize(("base", "size"), [(0x10F, 1), (0xFF, 2), (0, 0x1000), (0x104, 2)])
def test_a_range_that_is_taken_is_refused_by_both_names(base: int, size: int) -> None:
    bus = Bus("port")
    bus.add(0x100, 0x10, Recorder("first"))
    with pytest.raises(ConfigError, match=r"port .* for second: first is there already"):
        bus.add(base, size, Recorder("second"))
    assert len(list(bus)) == 1


@pytest.mark.parametrize(("base", "size"), [(0, 0), (0, -1), (-1, 4)])
def test_a_range_that_is_none_is_refused(base: int, size: int) -> None:
    with pytest.raises(ConfigError, match="size"):
        Bus("port").add(base, size, Recorder())


def test_neighbours_do_not_overlap() -> None:
    bus = Bus("port")
    for base in (0x10, 0x20, 0x00):
        bus.add(base, 0x10, Recorder())
    assert [(base, end) for base, end, _ in bus] == [(0, 0x10), (0x10, 0x20), (0x20, 0x30)]


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12)


@given(ranges)
def test_any_ranges_are_found_as_a_plain_table_would(wanted: list[tuple[int, int]]) -> None:
    bus, table = Bus("port"), dict[int, tuple[Device, int]]()
    for base, size in wanted:
        device = Recorder()
        if any(addr in table for addr in range(base, base + size)):
            with pytest.raises(ConfigError):
                bus.add(base, size, device)
        else:
            bus.add(base, size, device)
            table |= {base + offset: (device, offset) for offset in range(size)}
    assert {addr: found for addr in range(80) if (found := bus.find(addr))} == table


def test_function_device_reads_all_ones_unless_it_answers() -> None:
    calls: list[tuple[int, int, int | None]] = []

    def lamp(offset: int, size: int, value: int | None) -> int | None:
        calls.append((offset, size, value))
        return 0x55 if offset == 0 and value is None else None

    bus = Bus("port")
    bus.add(0x80, 2, FunctionDevice(lamp))
    assert (bus.read(0x80, 1), bus.read(0x81, 1)) == (0x55, 0xFF)
    bus.write(0x81, 2, 7)
    assert calls == [(0, 1, None), (1, 1, None), (1, 2, 7)]
    assert next(iter(bus))[2].name == "lamp"


def test_a_replacement_answers_and_leaves_the_rest_to_the_device_it_cuts() -> None:
    bus = Bus("port")
    old, new = Recorder("old"), Recorder("new")
    bus.add(0x10, 8, old)
    bus.replace(0x12, 2, new)
    assert [(base, end) for base, end, _ in bus] == [(0x10, 0x12), (0x12, 0x14), (0x14, 0x18)]
    assert bus.find(0x11) == (old, 1)
    assert bus.find(0x13) == (new, 1)
    assert bus.find(0x14) == (old, 4)


def test_a_replacement_may_cover_several_devices() -> None:
    bus = Bus("port")
    for base in (0x10, 0x20, 0x30):
        bus.add(base, 8, Recorder("old"))
    new = Recorder("new")
    bus.replace(0x10, 0x28, new)
    assert list(bus) == [(0x10, 0x38, new)]
