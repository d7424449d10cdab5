"""A caller of BIOS services without a CPU: puts registers on a stack, as the ROM's stub does."""

from __future__ import annotations

from collections import deque

from pykvm import layout
from pykvm.boot import bios as rom
from pykvm.boot.e820 import memory_map
from pykvm.devices.base import Device
from pykvm.devices.bios import FRAME, Bios, Call
from pykvm.memory import GuestMemory
from pykvm.pci import PciBus

STACK_SEGMENT = 0x7000
STACK = 0x0100
LINE_STATUS = 5


class Line(Device):
    """A UART as the BIOS uses it: `sent` is what came out, `typed` what waits to be read."""

    def __init__(self) -> None:
        self.sent = b""
        self.typed: deque[int] = deque()

    def read(self, offset: int, size: int) -> int:
        if offset == LINE_STATUS:
            return 0x60 | bool(self.typed)
        return self.typed.popleft() if offset == 0 and self.typed else 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.sent += bytes([value])


class Caller:
    """A machine's memory, data area and BIOS; `call()` is the INT instruction."""

    def __init__(self, memory_size: int = 4 << 20, pci: PciBus | None = None) -> None:
        self.memory = GuestMemory(memory_size)
        self.memory.write(rom.BDA, rom.build_data_area(self.memory.low_end))
        self.line = Line()
        self.now = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
        self.ends = 0
        self.bios = Bios(
            self.memory,
            self.line,
            memory_map(self.memory),
            self._end,
            now=lambda: self.now,
            pci=pci,
        )

    def _end(self) -> None:
        self.ends += 1

    def call(self, number: int, **registers: int) -> Call:
        """The registers after ``int number``."""
        call = Call()
        call.number = number
        for name, value in registers.items():
            setattr(call, name, value)
        gpa = (STACK_SEGMENT << 4) + STACK
        self.memory.write(gpa, call.frame())
        self.bios.write(0, 4, STACK_SEGMENT << 16 | STACK)
        return Call(self.memory.read(gpa, FRAME.size))

    def type(self, text: bytes) -> None:
        self.line.typed.extend(text)

    def print(self, text: bytes) -> None:
        """Teletype output, a call for each character."""
        for character in text:
            self.call(0x10, ax=0x0E00 | character, bx=7)

    def close(self) -> None:
        self.memory.close()


assert layout.BOOT_SECTOR < STACK_SEGMENT << 4  # the stack is in nobody's way
