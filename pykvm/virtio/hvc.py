"""The kernel's own console as a virtio device: Linux calls it hvc0.

Reached from `attach` (``--console virtio``). Without VIRTIO_CONSOLE_F_MULTIPORT a console device is
its port 0 alone (virtio 1.2 §5.3 Console Device), and a driver has it as soon as it has the device.
The ports of ``--port`` are therefore another device: `console`. For both the bytes move in
csrc/virtio_console.c; here they go to pipes, whose other ends `watch` serves as it does the serial
port::

    transmitq ── csrc/virtio_console.c ── pipe ── take()   Watcher, main thread
    receiveq  ──                       ── pipe ── give()

No message says when the driver is ready for input, and Linux's throws away what it gets before its
probe is over. But that ends with a look at the terminal's size, when it is told of a change: until
then, or until something is written, input waits in its pipe.
"""

from __future__ import annotations

import fcntl
import os
import struct

from pykvm._core import lib
from pykvm.lean import TYPE_CHECKING
from pykvm.virtio.consoledevice import CONFIG, ConsoleDevice, ConsoleFeature
from pykvm.virtio.device import Status
from pykvm.virtio.interrupt import CONFIG_CAUSE

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

TAKEN_MAX: Final = 1 << 16  # bytes at once
INPUT_AHEAD: Final = 4096  # bytes, which no snapshot has; a pipe holds no fewer
STATE: Final = struct.Struct("<HH?")  # columns, rows, whether the driver takes input


class Hvc(ConsoleDevice):
    """A console device with one port, the kernel's."""

    name = "hvc"
    queue_count = 2
    features = ConsoleFeature.SIZE

    def __init__(self, memory: GuestMemory) -> None:
        self.window = (0, 0)  # columns and rows of the terminal, where that is known
        self.output_fd, from_guest = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        to_guest, self.input_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(self.input_fd, fcntl.F_SETPIPE_SZ, INPUT_AHEAD)
            self._create([{"in_fd": to_guest, "out_fd": from_guest, "listen_fd": -1}])
        except BaseException:
            self._close_host()
            raise
        finally:
            os.close(from_guest)
            os.close(to_guest)
        self._takes_input = False
        super().__init__(memory)

    def read_config(self) -> bytes:
        if self._running:
            self._let_input_in()
        return CONFIG.pack(*self.window, 0, 0)

    def start(self) -> None:
        super().start()
        if self.has_feature(ConsoleFeature.SIZE):
            self.interrupt.notify(CONFIG_CAUSE)
        else:
            self._let_input_in()

    def _let_input_in(self, value: bool = True) -> None:
        if value != self._takes_input:
            self._takes_input = value
            lib.pk_console_open(self._handle, 0, value)
            self.kick(0)

    def reset(self) -> None:
        super().reset()
        self._let_input_in(False)

    # ── for the watcher, on the main thread ──────────────────────────────────────────────────

    def take(self) -> bytes:
        """What the guest has sent, or some of it; empty when that is all."""
        try:
            data = os.read(self.output_fd, TAKEN_MAX)
        except BlockingIOError:
            return b""
        self._let_input_in()
        return data

    def give(self, data: bytes) -> int:
        """Send `data` to the guest; returns how many bytes there was room for. They wait for a
        driver when there is none yet."""
        try:
            return os.write(self.input_fd, data)
        except BlockingIOError:
            return 0

    def resize(self, window: tuple[int, int]) -> None:
        """Tell the driver the terminal's columns and rows, if they are others than before."""
        if window == self.window:
            return
        with self.lock:
            self.window = window
            self.config_generation += 1
            if self._status & Status.DRIVER_OK:
                self.interrupt.notify(CONFIG_CAUSE)

    # ── snapshots ────────────────────────────────────────────────────────────────────────────

    def state(self) -> bytes:
        return STATE.pack(*self.window, self._takes_input) + super().state()

    def restore(self, state: bytes) -> None:
        columns, rows, takes_input = STATE.unpack_from(state)
        self.window = columns, rows  # what the driver was told; `resize` tells it what is new
        super().restore(state[STATE.size :])
        self._let_input_in(takes_input)

    def close(self) -> None:
        super().close()
        self._close_host()

    def _close_host(self) -> None:
        self._destroy()
        for fd in (self.output_fd, self.input_fd):
            if fd >= 0:
                os.close(fd)
        self.output_fd = self.input_fd = -1
