"""The serial port's Python side: the accesses that csrc/serial.c leaves, and the two queues.

Reached from `machine`: the main thread moves the bytes; a vCPU thread comes here only for a wide
access or when the transmit buffer is full. Read csrc/serial.c for the UART itself.
"""

from __future__ import annotations

import os
import threading

from pykvm._core import ffi, lib
from pykvm.devices.base import Device
from pykvm.errors import check
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Final

TAKEN_MAX: Final = 1 << 16  # bytes: the whole transmit buffer
uncleared: Final = ffi.new_allocator(should_clear_after_alloc=False)


class Serial(Device):
    """A 16550A at PIO `base`, interrupting `gsi` of the VM `vm_fd`."""

    name = "serial"

    def __init__(self, c_bus: Any, base: int, vm_fd: int, gsi: int) -> None:
        out = ffi.new("struct pk_serial **")
        check(lib.pk_serial_create(c_bus, base, vm_fd, gsi, out), "eventfd for the serial port")
        self._handle = out[0]
        self._room = threading.Condition()  # _takes, _ending, _late
        self._takes = 0  # how often the transmit buffer was emptied
        self._ending = False
        self._late = bytearray()  # sent when the buffer was full and nobody would empty it
        self.output_fd: int = lib.pk_serial_event_fd(self._handle)
        self.input_fd: int = lib.pk_serial_input_fd(self._handle)

    # ── the guest's side ─────────────────────────────────────────────────────────────────────

    def read(self, offset: int, size: int) -> int:
        value = 0
        byte = ffi.new("uint8_t *")
        for i in range(size):
            if offset + i < 8:
                lib.pk_serial_access(self._handle, offset + i, 0, byte)
            else:
                byte[0] = 0xFF
            value |= byte[0] << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            if offset + i < 8:
                self._write_register(offset + i, value >> (8 * i) & 0xFF)

    def _write_register(self, register: int, byte: int) -> None:
        """Write one register; when the transmit buffer is full, wait until it was emptied."""
        value = ffi.new("uint8_t *", byte)
        while True:
            takes = self._takes  # before trying, or what is taken in between would be missed
            if lib.pk_serial_access(self._handle, register, 1, value):
                return
            with self._room:
                self._room.wait_for(lambda: self._takes != takes or self._ending)  # noqa: B023
                if self._ending:
                    self._late.append(byte)
                    return

    def reset(self) -> None:
        lib.pk_serial_reset(self._handle)

    def state(self) -> bytes:
        buffer = ffi.new("uint8_t[]", lib.PK_SERIAL_STATE_SIZE)
        lib.pk_serial_save(self._handle, buffer)
        return bytes(ffi.buffer(buffer))

    def restore(self, state: bytes) -> None:
        if len(state) != lib.PK_SERIAL_STATE_SIZE:
            raise ValueError(f"{len(state)} bytes are not the state of a serial port")
        lib.pk_serial_load(self._handle, ffi.from_buffer(state))

    # ── the host's side, main thread ─────────────────────────────────────────────────────────

    def take(self) -> bytes:
        """All that the guest has sent since the last call."""
        buffer = uncleared("uint8_t[]", TAKEN_MAX)
        count = lib.pk_serial_take(self._handle, buffer, TAKEN_MAX)
        data = bytes(ffi.buffer(buffer, count))
        with self._room:
            if self._late and count < TAKEN_MAX:
                data += self._late
                self._late.clear()
            self._takes += 1
            self._room.notify_all()
        return data

    def give(self, data: bytes) -> int:
        """Send `data` to the guest; returns how many bytes it has room for now."""
        return int(lib.pk_serial_give(self._handle, data, len(data)))

    def clear_events(self) -> None:
        """Make `output_fd` and `input_fd` unreadable again; before looking at the queues."""
        for fd in (self.output_fd, self.input_fd):
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                continue

    def stop_waiting(self) -> None:
        """Let vCPU threads that wait for room go on: the run ends."""
        with self._room:
            self._ending = True
            self._room.notify_all()

    def resume(self) -> None:
        """Let vCPU threads wait again: another run begins."""
        self._ending = False

    def close(self) -> None:
        """Free the UART. No vCPU may run any more. Safe to call twice."""
        if self._handle != ffi.NULL:
            lib.pk_serial_destroy(self._handle)
            self._handle = ffi.NULL
