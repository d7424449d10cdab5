"""The serial port's Python side: wide accesses, the two queues, waiting for room. No KVM."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pykvm._core import lib
from pykvm.devices.serial import Serial

DATA, IER, LCR, LSR, SCR = 0, 1, 3, 5, 7
TX_RING = 1 << 16


@pytest.fixture
def serial() -> Iterator[Serial]:
    bus = lib.pk_bus_create()
    serial = Serial(bus, 0x3F8, -1, 4)  # of no VM: no interrupts
    yield serial
    serial.close()
    serial.close()
    lib.pk_bus_destroy(bus)


def test_bytes_from_the_guest_are_taken_in_order(serial: Serial) -> None:
    for byte in b"hello":
        serial.write(DATA, 1, byte)
    assert serial.take() == b"hello"
    assert serial.take() == b""


def test_wide_access_is_one_register_after_the_other(serial: Serial) -> None:
    serial.write(LCR, 2, 0x0B_1B)
    assert serial.read(LCR, 2) == 0x0B_1B
    serial.write(LCR, 1, 0x03)
    serial.write(DATA, 4, 0x03_00_0F_41)  # THR, IER, FCR, LCR
    assert (serial.take(), serial.read(IER, 1)) == (b"A", 0x0F)


def test_access_beyond_the_last_register_reads_all_ones(serial: Serial) -> None:
    serial.write(SCR, 2, 0xAB_CD)
    assert serial.read(SCR, 2) == 0xFF_CD


def test_given_bytes_come_when_the_guest_wants_them(serial: Serial) -> None:
    assert serial.give(b"early") == 0
    serial.write(IER, 1, 0x01)
    assert serial.give(b"early") == 5
    assert bytes(serial.read(DATA, 1) for _ in range(5)) == b"early"


def test_guest_that_outruns_the_host_waits_and_loses_nothing(serial: Serial) -> None:
    sent = bytes(i % 251 for i in range(3 * TX_RING))

    def guest() -> None:
        for byte in sent:
            serial.write(DATA, 1, byte)

    thread = threading.Thread(target=guest)
    thread.start()
    taken = b""
    while thread.is_alive() or len(taken) < len(sent):
        taken += serial.take()
    thread.join()
    assert taken == sent


def fill(serial: Serial) -> None:
    for _ in range(TX_RING):
        serial.write(DATA, 1, ord("."))


@pytest.mark.parametrize("guests", [1, 4])
def test_guests_that_wait_for_room_are_let_go_at_the_end(serial: Serial, guests: int) -> None:
    fill(serial)
    threads = [
        threading.Thread(target=serial.write, args=(DATA, 1, ord("!"))) for _ in range(guests)
    ]
    for thread in threads:
        thread.start()
    serial.stop_waiting()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    taken = serial.take() + serial.take()
    assert taken == b"." * TX_RING + b"!" * guests  # not a byte is lost


def test_after_the_end_the_next_run_waits_again(serial: Serial) -> None:
    serial.stop_waiting()
    serial.resume()
    fill(serial)
    thread = threading.Thread(target=serial.write, args=(DATA, 1, ord("!")))
    thread.start()
    taken = serial.take()
    thread.join(30)
    assert not thread.is_alive()
    assert taken + serial.take() == b"." * TX_RING + b"!"


def test_state_makes_the_same_port_again(serial: Serial) -> None:
    serial.write(SCR, 1, 0x5A)
    serial.write(IER, 1, 0x01)
    serial.give(b"kept")
    state = serial.state()
    serial.reset()
    assert serial.read(SCR, 1) == 0
    serial.restore(state)
    assert serial.read(SCR, 1) == 0x5A
    assert bytes(serial.read(DATA, 1) for _ in range(4)) == b"kept"


@pytest.mark.parametrize("size", [0, 1, 31, 33, 1000])
def test_state_of_another_length_is_refused(serial: Serial, size: int) -> None:
    with pytest.raises(ValueError, match="serial"):
        serial.restore(b"\0" * size)
