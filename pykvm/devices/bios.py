"""BIOS services for guests entered in real mode, on COM1 in place of screen and keyboard.

Reached from the bus at `layout.PORT_BIOS_CALL`, through the ROM that `boot/bios.py` writes. The
caller's registers lie on the guest's stack: a service reads and changes them there. Boot loaders
such as iPXE live on these. Source: Ralf Brown's Interrupt List. Read `biosvideo` for int 10h, and
`biospci` for the PCI BIOS.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

from pykvm import layout
from pykvm.boot import bios as rom
from pykvm.boot.entry import E820
from pykvm.devices.base import Device
from pykvm.devices.bioskeys import Keyboard
from pykvm.devices.biosvideo import Video
from pykvm.lean import TYPE_CHECKING
from pykvm.memory import GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    from typing import Final

    from pykvm.pci import PciBus

# What the stub and the INT pushed, lowest address first.
STATE: Final = struct.Struct("<d")  # seconds left of a wait
FRAME: Final = struct.Struct("<HH 8I H HHH")
FIELDS: Final = (
    *("es", "ds"),
    *("edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax"),
    *("number", "ip", "cs", "flags"),
)
assert FRAME.size == 44

WAIT: Final = 0x100  # in `number`: halt until an interrupt, then ask again
HALTED: Final = 0xFF  # in `number`: a call that has no end
CARRY: Final = 1 << 0
ZERO: Final = 1 << 6

UNSUPPORTED: Final = 0x86  # AH of int 15h
NO_DRIVE: Final = 0x01  # AH of int 13h: invalid function or parameter
SMAP: Final = 0x534D4150
E820_ENTRY: Final = struct.Struct("<QQI")
assert E820_ENTRY.size == 20


class _Part:
    """A 16- or 8-bit part of a 32-bit register, readable and writable."""

    def __init__(self, register: str, shift: int, bits: int) -> None:
        self._register, self._shift, self._mask = register, shift, (1 << bits) - 1

    def __get__(self, call: Call, owner: type[Call]) -> int:
        return int(getattr(call, self._register)) >> self._shift & self._mask

    def __set__(self, call: Call, value: int) -> None:
        rest = getattr(call, self._register) & ~(self._mask << self._shift)
        setattr(call, self._register, rest | (value & self._mask) << self._shift)


class Call:
    """The registers of one call, as the caller will see them after IRET."""

    es: int
    ds: int
    edi: int
    esi: int
    ebp: int
    ebx: int
    edx: int
    ecx: int
    eax: int
    number: int
    ip: int
    cs: int
    flags: int
    ax, ah, al = _Part("eax", 0, 16), _Part("eax", 8, 8), _Part("eax", 0, 8)
    bx, bh, bl = _Part("ebx", 0, 16), _Part("ebx", 8, 8), _Part("ebx", 0, 8)
    cx, ch, cl = _Part("ecx", 0, 16), _Part("ecx", 8, 8), _Part("ecx", 0, 8)
    dx, dh, dl = _Part("edx", 0, 16), _Part("edx", 8, 8), _Part("edx", 0, 8)
    si, di, bp = _Part("esi", 0, 16), _Part("edi", 0, 16), _Part("ebp", 0, 16)

    def __init__(self, frame: bytes = bytes(FRAME.size)) -> None:
        vars(self).update(zip(FIELDS, FRAME.unpack(frame), strict=True))

    def frame(self) -> bytes:
        """The bytes to write back."""
        return FRAME.pack(*vars(self).values())  # in the order of FIELDS

    def set_flag(self, flag: int, on: bool) -> None:
        self.flags = self.flags | flag if on else self.flags & ~flag

    def fail(self, ah: int) -> None:
        """Answer with carry set and `ah` in AH."""
        self.ah = ah
        self.set_flag(CARRY, True)


class Bios(Device):
    """The services. `serial` is the UART whose line is screen and keyboard; `on_end` is called when
    there is nothing left to boot (int 18h and 19h), or the guest went astray (int 0 and 6). `pci`
    is the machine's PCI bus, if it has one."""

    name = "BIOS"

    def __init__(
        self,
        memory: GuestMemory,
        serial: Device,
        e820: Sequence[E820],
        on_end: Callable[[], None],
        now: Callable[[], float] = time.time,
        pci: PciBus | None = None,
    ) -> None:
        self._memory = memory
        self._serial = serial
        self._e820 = e820
        self._on_end = on_end
        self._now = now
        self._pci = pci
        self._video = Video(memory, self._send)
        self._keyboard = Keyboard(memory, self._receive)
        self._wait_until = 0.0  # int 15h AH=86h; host's time
        self._services: dict[int, Callable[[Call], None]] = {
            0x00: self._fault,
            0x06: self._fault,
            0x10: self._video.call,
            0x11: self._equipment,
            0x12: self._memory_size,
            0x13: self._disk,
            0x14: self._serial_port,
            0x15: self._system,
            0x16: self._keys,
            0x17: self._printer,
            0x18: self._nothing_to_boot,
            0x19: self._nothing_to_boot,
            0x1A: self._time,
            HALTED: self._halt,
        }

    def state(self) -> bytes:
        """What is left of a wait; the rest is in guest memory, or the terminal's."""
        return STATE.pack(self._wait_until and max(self._wait_until - self._now(), 1e-6))

    def restore(self, state: bytes) -> None:
        (left_s,) = STATE.unpack(state)
        self._wait_until = left_s and self._now() + left_s

    def write(self, offset: int, size: int, value: int) -> None:
        """Serve the call whose registers lie at SS:SP, which `value` holds."""
        if (offset, size) != (0, 4):
            return
        gpa = (value >> 16 << 4) + (value & 0xFFFF)
        try:
            call = Call(self._memory.read(gpa, FRAME.size))
            service = self._services.get(call.number & 0xFF)
            if service is not None:
                service(call)
            self._memory.write(gpa, call.frame())
        except GuestMemoryError:
            return  # a pointer of the guest's leads nowhere: it gets no answer

    # ── COM1 ─────────────────────────────────────────────────────────────────────────────────

    def _send(self, data: bytes) -> None:
        for byte in data:
            self._serial.write(0, 1, byte)

    def _receive(self) -> int | None:
        """The next byte typed, or None."""
        data_ready = self._serial.read(5, 1) & 1  # line status register
        return self._serial.read(0, 1) if data_ready else None

    def _serial_port(self, call: Call) -> None:
        """int 14h."""
        if call.dx != 0:
            call.ah = 0x80  # time-out: no such port
        elif call.ah == 1:
            self._send(bytes([call.al]))
            call.ah = 0x60  # transmitter empty
        elif call.ah == 2:
            byte = self._receive()
            call.ah, call.al = (0x80, 0) if byte is None else (0, byte)
        else:
            call.ah, call.al = self._serial.read(5, 1), self._serial.read(6, 1)

    # ── what the machine is ──────────────────────────────────────────────────────────────────

    def _equipment(self, call: Call) -> None:
        """int 11h."""
        call.ax = self._data_word(rom.BDA_EQUIPMENT)

    def _memory_size(self, call: Call) -> None:
        """int 12h: conventional memory in KiB."""
        call.ax = self._data_word(rom.BDA_BASE_KIB)

    def _data_word(self, offset: int) -> int:
        return int.from_bytes(self._memory.read(rom.BDA + offset, 2), "little")

    def _disk(self, call: Call) -> None:
        """int 13h: there are no drives."""
        if call.ah == 0x15:  # drive type: 0 is "none"
            call.ah = 0
            call.set_flag(CARRY, False)
        else:
            call.fail(NO_DRIVE)

    def _printer(self, call: Call) -> None:
        """int 17h: no printer."""
        call.ah = 0x01  # time-out

    def _system(self, call: Call) -> None:
        """int 15h: memory maps, block moves, A20, waiting."""
        call.set_flag(CARRY, False)
        if call.ax == 0xE820 and call.edx == SMAP:
            self._memory_map(call)
        elif call.ax == 0xE801:
            low = self._ram_from(layout.HIGH_MEMORY, 16 * layout.MIB)
            high = self._ram_from(16 * layout.MIB, layout.MMIO_HOLE)
            call.ax = call.cx = low // layout.KIB
            call.bx = call.dx = high // (64 * layout.KIB)
        elif call.ax in (0x2400, 0x2401):
            call.ah = 0  # A20 is always on; who turns it off does not look
        elif call.ax == 0x2402:
            call.ax = 1  # on
        elif call.ax == 0x2403:
            call.ah, call.bx = 0, 1  # switchable by the keyboard controller
        elif call.ah == 0x86:
            self._wait(call)
        elif call.ah == 0x87:
            self._move_block(call)
        elif call.ah == 0x88:
            extended = self._ram_from(layout.HIGH_MEMORY, 64 * layout.MIB)
            call.ax = extended // layout.KIB
        elif call.ah == 0xC1:
            call.es = layout.EBDA >> 4
        elif call.ah == 0x4F:  # keyboard intercept: leave the key as it is
            call.set_flag(CARRY, True)
        else:
            call.fail(UNSUPPORTED)

    def _memory_map(self, call: Call) -> None:
        """ACPI 6.5 §15.1 INT 15H, E820H - Query System Address Map."""
        index = call.ebx
        if index >= len(self._e820) or call.ecx < E820_ENTRY.size:
            call.fail(UNSUPPORTED)
            return
        self._memory.write((call.es << 4) + call.di, E820_ENTRY.pack(*self._e820[index]))
        call.eax, call.ecx = SMAP, E820_ENTRY.size
        call.ebx = index + 1 if index + 1 < len(self._e820) else 0

    def _ram_from(self, start: int, end: int) -> int:
        """Bytes of memory from `start` on, up to `end`."""
        return max(min(self._memory.low_end, end) - start, 0)

    def _move_block(self, call: Call) -> None:
        """Copy CX words; source and target are descriptors 2 and 3 of a table at ES:SI."""
        table = self._memory.read((call.es << 4) + call.si, 0x20)
        source, target = (
            int.from_bytes(table[at + 2 : at + 5] + table[at + 7 : at + 8], "little")
            for at in (0x10, 0x18)
        )
        call.ah = 0
        try:
            self._memory.write(target, self._memory.read(source, 2 * call.cx))
        except GuestMemoryError:
            call.fail(0x02)  # exception
        call.set_flag(ZERO, not call.ah)

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def _wait(self, call: Call) -> None:
        """Return after CX:DX microseconds; the stub halts meanwhile, a timer tick at a time."""
        if not self._wait_until:
            self._wait_until = self._now() + (call.cx << 16 | call.dx) / 1e6
        if self._now() < self._wait_until:
            call.number |= WAIT
        else:
            self._wait_until = 0.0

    def _time(self, call: Call) -> None:
        """int 1Ah."""
        now = time.gmtime(self._now())
        call.set_flag(CARRY, False)
        if call.ah == 0x00:
            ticks = self._memory.read(rom.BDA + rom.BDA_TICKS, 4)
            call.dx, call.cx = struct.unpack("<HH", ticks)
            call.al = 0  # midnight has not passed
        elif call.ah == 0x01:
            ticks = struct.pack("<HH", call.dx, call.cx)
            self._memory.write(rom.BDA + rom.BDA_TICKS, ticks)
        elif call.ah == 0x02:
            call.ch, call.cl = _bcd(now.tm_hour), _bcd(now.tm_min)
            call.dh, call.dl = _bcd(now.tm_sec), 0  # no daylight saving
        elif call.ah == 0x04:
            call.ch, call.cl = _bcd(now.tm_year // 100), _bcd(now.tm_year % 100)
            call.dh, call.dl = _bcd(now.tm_mon), _bcd(now.tm_mday)
        elif call.ah == 0xB1 and self._pci is not None:
            self._pci_bios(call, self._pci)
        else:  # B1h, the PCI BIOS, included: a machine without PCI has none
            call.fail(UNSUPPORTED)

    def _pci_bios(self, call: Call, bus: PciBus) -> None:
        from pykvm.devices import biospci

        call.ah = biospci.serve(call, bus)
        call.set_flag(CARRY, call.ah != biospci.SUCCESSFUL)

    # ── the user ─────────────────────────────────────────────────────────────────────────────

    def _keys(self, call: Call) -> None:
        """int 16h."""
        function = call.ah & ~0x10  # 10h to 12h: the same for 101 keys
        if function in (0, 1):
            key = self._keyboard.next(take=function == 0)
            if key is not None:
                call.ax = key
            elif function == 0:
                call.number |= WAIT
            if function == 1:
                call.set_flag(ZERO, key is None)
        elif function == 2:
            call.al = 0  # no shift keys are down
            if call.ah == 0x12:
                call.ah = 0  # nor the left or the right one of them: ISOLINUX looks
        elif call.ah == 5:
            call.al = int(not self._keyboard.push(call.cx))

    def _nothing_to_boot(self, call: Call) -> None:
        """int 18h and 19h: what was booted gave up, and there is nothing else."""
        self._send(b"\r\nNo bootable device.\r\n")
        self._on_end()
        self._halt(call)

    def _fault(self, call: Call) -> None:
        """Say that the guest went astray, and end it: returning would repeat the instruction."""
        what = {0x00: "divide error", 0x06: "invalid opcode"}[call.number & 0xFF]
        self._send(f"\r\nBIOS: {what} at {call.cs:04x}:{call.ip:04x}\r\n".encode())
        self._on_end()
        self._halt(call)

    def _halt(self, call: Call) -> None:
        """Never return to the caller; interrupts are still served."""
        call.number = WAIT | HALTED


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10
