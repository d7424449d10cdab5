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
    from typing import Any


class Serial(Device):
    """A 16550A at PIO `base`, interrupting `gsi` of the VM `vm_fd`."""

    name = "serial"

    def __init__(self, c_bus: Any, base: int, vm_fd: int, gsi: int) -> None:
        out = ffi.new("struct pk_serial **")
        check(lib.pk_serial_create(c_bus, base, vm_fd, gsi, out), "eventfd for the serial port")
        self._handle = out[0]
        self._room = threading.Event()  # the transmit buffer was emptied
        self._buffer = ffi.new("uint8_t[]", 1 << 16)
        self._closing = False
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
            byte = ffi.new("uint8_t *", value >> (8 * i) & 0xFF)
            while offset + i < 8:
                self._room.clear()
                if lib.pk_serial_access(self._handle, offset + i, 1, byte) or self._closing:
                    break
                self._room.wait()  # until the main thread has taken the output

    def reset(self) -> None:
        lib.pk_serial_reset(self._handle)

    def state(self) -> bytes:
        buffer = ffi.new("uint8_t[]", lib.PK_SERIAL_STATE_SIZE)
        lib.pk_serial_save(self._handle, buffer)
        return bytes(ffi.buffer(buffer))

    def restore(self, state: bytes) -> None:
        lib.pk_serial_load(self._handle, ffi.from_buffer(state))

    # ── the host's side, main thread ─────────────────────────────────────────────────────────

    def take(self) -> bytes:
        """All that the guest has sent since the last call."""
        count = lib.pk_serial_take(self._handle, self._buffer, len(self._buffer))
        self._room.set()
        return bytes(ffi.buffer(self._buffer, count))

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
        """Let a vCPU thread that waits for room go on, dropping its byte: the machine ends."""
        self._closing = True
        self._room.set()

    def close(self) -> None:
        """Free the UART. No vCPU may run any more. Safe to call twice."""
        if self._handle != ffi.NULL:
            lib.pk_serial_destroy(self._handle)
            self._handle = ffi.NULL
