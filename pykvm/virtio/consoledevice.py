"""What the two console devices share: the data plane of csrc/virtio_console.c, and the layout of
their configuration.

Reached from `console`, whose ports are named channels, and `hvc`, whose one port is the kernel's
console. Source: virtio 1.2 §5.3 Console Device.
"""

from __future__ import annotations

import enum
import select
import struct

from pykvm._core import ffi, lib
from pykvm.errors import check
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from pykvm.virtio.ports import Files

CONFIG: Final = struct.Struct("<HHII")  # §5.3.4: cols, rows, max_nr_ports, emerg_wr
FLUSH_MS: Final = 1  # between looks


class ConsoleFeature(enum.IntFlag):
    """§5.3.3 Feature bits: those that are offered."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1


class ConsoleDevice(VirtioDevice):
    """A console device, its bytes moved in C."""

    device_id = 3
    _handle = ffi.NULL

    def _create(self, ports: Sequence[Files], event_fd: int = -1) -> None:
        """Make the data plane; it copies the descriptors, and writes `event_fd` when a client of a
        port comes or goes."""
        out = ffi.new("struct pk_console **")
        given = ffi.new("struct pk_console_port[]", list(ports))
        result = lib.pk_console_create(given, len(given), event_fd, out)
        check(result, "memory and descriptors for a console device")
        self._handle = out[0]

    def _destroy(self) -> None:
        """Free it. Safe to call twice."""
        if self._handle != ffi.NULL:
            lib.pk_console_destroy(self._handle)
            self._handle = ffi.NULL

    def start(self) -> None:
        check(lib.pk_console_start(self._handle, *self._c_args()), "a thread for a console")

    def stop(self) -> None:
        lib.pk_console_stop(self._handle)

    def flush(self, interrupted_fd: int, meanwhile: Callable[[], object] = bool) -> None:
        """Wait until all that the guest has sent is with the host, or `interrupted_fd` is readable;
        call `meanwhile` again and again. The vCPUs are still, or there may be no end."""
        with self.lock:
            if not self._running:
                return
            flush = lib.pk_console_flush(self._handle)
            self.kick(1)
        poll = select.poll()
        poll.register(interrupted_fd, select.POLLIN)
        while not lib.pk_console_flushed(self._handle, flush) and not poll.poll(FLUSH_MS):
            meanwhile()
