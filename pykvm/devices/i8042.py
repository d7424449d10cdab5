"""The keyboard controller: a reset line that kernels know, and quick answers to those that probe.

Reached from the bus at `layout.PORT_I8042`: data at offset 0 (port 0x60), status and command at
offset 4 (port 0x64). Behind it sits a keyboard that answers every command and never types, because
a controller that stays silent makes a kernel wait for its time-outs. There is no mouse. Source: IBM
PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable

from pykvm.devices.bytewide import ByteWide
from pykvm.lean import TYPE_CHECKING, IntEnum, IntFlag

if TYPE_CHECKING:
    from typing import Final

DATA: Final = 0  # offsets
COMMAND: Final = 4


class Status(IntFlag):
    """Bits of the status register; the input buffer is never full."""

    OUTPUT_FULL = 1 << 0
    SYSTEM = 1 << 2  # the self-test was passed
    COMMAND = 1 << 3  # the last write went to the command port
    UNLOCKED = 1 << 4
    AUX_OUTPUT = 1 << 5  # the byte in the output buffer comes from the mouse's side


class Command(IntEnum):
    """Controller commands; the others are taken and do nothing."""

    READ_CONFIG = 0x20
    WRITE_CONFIG = 0x60
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    LOOP_KEYBOARD = 0xD2
    LOOP_AUX = 0xD3
    WRITE_AUX = 0xD4
    PULSE = 0xF0  # to 0xFF: pulse the output lines whose bit is 0; line 0 is the CPU's reset


class Config(IntFlag):
    """Bits of the configuration byte."""

    KEYBOARD_INTERRUPT = 1 << 0
    SYSTEM = 1 << 2
    KEYBOARD_DISABLED = 1 << 4
    AUX_DISABLED = 1 << 5
    TRANSLATE = 1 << 6


# Commands whose one answer never changes.
ANSWERS: Final = {
    Command.TEST_AUX: 0x01,  # clock line stuck: nothing is plugged in
    Command.SELF_TEST: 0x55,  # passed
    Command.TEST_KEYBOARD: 0x00,  # passed
    Command.READ_INPUT_PORT: 0x80,  # keyboard not locked
    Command.READ_OUTPUT_PORT: 0x03,  # not in reset, A20 on (which it always is)
}
WITH_PARAMETER: Final = {
    Command.WRITE_CONFIG,
    Command.WRITE_OUTPUT_PORT,
    Command.LOOP_KEYBOARD,
    Command.LOOP_AUX,
    Command.WRITE_AUX,
}

KEYBOARD_ACK: Final = b"\xfa"
KEYBOARD_ANSWERS: Final = {
    0xFF: b"\xfa\xaa",  # reset: acknowledged, self-test passed
    0xF2: b"\xfa\xab\x83",  # identify: a standard keyboard
    0xEE: b"\xee",  # echo
}
AUX: Final = 0x100  # marks a queued byte as the mouse's
RESEND: Final = 0xFE  # what a byte to an absent mouse comes back as
QUEUE_LIMIT: Final = 16  # a guest that only writes must not grow our memory

_STATE: Final = struct.Struct("<BBB")


class I8042(ByteWide):
    """The controller. `irq` drives the keyboard's interrupt line: a pulse for each byte."""

    name = "i8042"

    def __init__(
        self, on_reset: Callable[[], None], irq: Callable[[int], None] = lambda level: None
    ) -> None:
        self._on_reset = on_reset
        self._irq = irq
        self._lock = threading.Lock()  # vCPU threads
        self._output: deque[int] = deque(maxlen=QUEUE_LIMIT)
        self._config = Config.KEYBOARD_INTERRUPT | Config.SYSTEM | Config.TRANSLATE
        self._status = Status.SYSTEM | Status.UNLOCKED
        self._pending = 0  # the command whose parameter the next data byte is; 0: none
        self._level = 0

    def read_byte(self, offset: int) -> int:
        with self._lock:
            if offset == COMMAND:
                return self._read_status()
            if offset == DATA:
                return self._read_data()
        return 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        resets = False
        with self._lock:
            if offset == COMMAND:
                self._status |= Status.COMMAND
                resets = self._command(value)
            elif offset == DATA:
                self._status &= ~Status.COMMAND
                resets = self._data(value)
            self._update_irq()
        if resets:
            self._on_reset()

    def reset(self) -> None:
        with self._lock:
            self._output.clear()
            self._config = Config.KEYBOARD_INTERRUPT | Config.SYSTEM | Config.TRANSLATE
            self._status = Status.SYSTEM | Status.UNLOCKED
            self._pending = 0
            self._update_irq()

    def state(self) -> bytes:
        head = _STATE.pack(self._config, self._status, self._pending)
        return head + struct.pack(f"<{len(self._output)}H", *self._output)

    def restore(self, state: bytes) -> None:
        config, status, pending = _STATE.unpack_from(state)
        queue = state[_STATE.size :]
        with self._lock:
            self._config, self._status, self._pending = Config(config), Status(status), pending
            self._output = deque(struct.unpack(f"<{len(queue) // 2}H", queue), QUEUE_LIMIT)
            self._update_irq()

    def _read_status(self) -> int:
        status = self._status
        if self._output:
            status |= Status.OUTPUT_FULL
            if self._output[0] & AUX:
                status |= Status.AUX_OUTPUT
        return status

    def _read_data(self) -> int:
        value = self._output.popleft() & 0xFF if self._output else 0
        self._drive(0)  # each byte is an edge of its own
        self._update_irq()
        return value

    def _command(self, command: int) -> bool:
        """Take a controller command; return whether it resets the machine."""
        self._pending = command if command in WITH_PARAMETER else 0
        if command in ANSWERS:
            self._output.append(ANSWERS[Command(command)])
        elif command == Command.READ_CONFIG:
            self._output.append(self._config)
        elif command == Command.DISABLE_KEYBOARD:
            self._config |= Config.KEYBOARD_DISABLED
        elif command == Command.ENABLE_KEYBOARD:
            self._config &= ~Config.KEYBOARD_DISABLED
        elif command == Command.DISABLE_AUX:
            self._config |= Config.AUX_DISABLED
        elif command == Command.ENABLE_AUX:
            self._config &= ~Config.AUX_DISABLED
        return command >= Command.PULSE and not command & 1

    def _data(self, value: int) -> bool:
        """Take a command's parameter or a byte for the keyboard; return whether it resets."""
        command, self._pending = self._pending, 0
        if command == Command.WRITE_CONFIG:
            self._config = Config(value)
        elif command == Command.WRITE_OUTPUT_PORT:
            return not value & 1
        elif command in (Command.LOOP_KEYBOARD, Command.LOOP_AUX):
            self._output.append(value)  # never marked AUX: a kernel learns that no mouse is there
        elif command == Command.WRITE_AUX:
            self._output.append(RESEND | AUX)
        else:
            self._output.extend(KEYBOARD_ANSWERS.get(value, KEYBOARD_ACK))
        return False

    def _update_irq(self) -> None:
        ready = bool(self._output) and not self._output[0] & AUX
        self._drive(int(ready and bool(self._config & Config.KEYBOARD_INTERRUPT)))

    def _drive(self, level: int) -> None:
        if level != self._level:
            self._level = level
            self._irq(level)
