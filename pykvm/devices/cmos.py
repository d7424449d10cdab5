"""The real-time clock and its battery-backed RAM: wall-clock time, and the memory's size.

Reached from the bus at `layout.PORT_RTC`: index at offset 0 (port 0x70), data at offset 1. Linux
reads the time here while booting; `hwclock` waits for an update interrupt. Source: Motorola
MC146818A data sheet; the memory-size bytes are the IBM AT's and SeaBIOS's (src/hw/rtc.h).
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from functools import lru_cache

from pykvm.devices.bytewide import ByteWide
from pykvm.layout import GIB, KIB, MIB
from pykvm.lean import TYPE_CHECKING, IntEnum, IntFlag

if TYPE_CHECKING:
    from typing import Final

INDEX: Final = 0  # offsets; bit 7 of the index masks NMIs, and is not part of it
DATA: Final = 1
RAM_SIZE: Final = 128


class Register(IntEnum):
    """Indices into the RAM that mean something."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    WEEKDAY = 0x06  # 1 is Sunday
    DAY = 0x07
    MONTH = 0x08
    YEAR = 0x09  # of the century
    A = 0x0A  # update in progress, rates
    B = 0x0B  # see `B`
    C = 0x0C  # see `C`; reading clears it
    D = 0x0D  # bit 7: the battery is good
    BASE_KIB = 0x15  # 16 bits: memory below 640 KiB, in KiB
    EXTENDED_KIB = 0x17  # 16 bits: memory above 1 MiB, in KiB, up to 63 MiB
    EXTENDED_KIB_COPY = 0x30
    CENTURY = 0x32  # the FADT names it
    ABOVE_16M = 0x34  # 16 bits: memory between 16 MiB and 4 GiB, in 64 KiB
    ABOVE_4G = 0x5B  # 24 bits: memory above 4 GiB, in 64 KiB


class B(IntFlag):
    """Register B: modes and interrupt enables. The periodic interrupt (bit 6) is not offered."""

    HOURS_24 = 1 << 1
    BINARY = 1 << 2  # clear: binary-coded decimal
    UPDATE = 1 << 4
    ALARM = 1 << 5
    SET = 1 << 7  # time stands still while the guest sets it


class C(IntFlag):
    """Register C: what happened since it was last read."""

    UPDATE = 1 << 4
    ALARM = 1 << 5
    INTERRUPT = 1 << 7


CLOCK: Final = (
    Register.SECONDS,
    Register.MINUTES,
    Register.HOURS,
    Register.WEEKDAY,
    Register.DAY,
    Register.MONTH,
    Register.YEAR,
    Register.CENTURY,
)
READ_ONLY: Final = (Register.C, Register.D)
RATES: Final = 0x26  # register A: 32768 Hz time base, 1024 Hz rate
UIP: Final = 1 << 7  # register A: always clear, so that nobody ever waits for an update's end
PM: Final = 1 << 7  # of the hour, in 12-hour mode
ALARM_ANY: Final = 0xC0  # an alarm byte from here on matches everything

_STATE: Final = struct.Struct("<Bdd128s")


@lru_cache(maxsize=16)
def _ram(memory_size: int, high_memory_size: int) -> bytes:
    """What the RAM tells of a machine's memory, and of the battery."""
    ram = bytearray(RAM_SIZE)
    ram[Register.D] = 1 << 7
    for register, size, value in (
        (Register.BASE_KIB, 2, min(memory_size, 640 * KIB) // KIB),
        (Register.EXTENDED_KIB, 2, min(max(memory_size - MIB, 0), 63 * MIB) // KIB),
        (Register.EXTENDED_KIB_COPY, 2, min(max(memory_size - MIB, 0), 63 * MIB) // KIB),
        (Register.ABOVE_16M, 2, min(max(memory_size - 16 * MIB, 0), 4 * GIB) // (64 * KIB)),
        (Register.ABOVE_4G, 3, high_memory_size // (64 * KIB)),
    ):
        ram[register : register + size] = value.to_bytes(size, "little")
    return bytes(ram)


class Cmos(ByteWide):
    """Clock and RAM. The clock follows `now` (the host's, UTC, seconds), as shifted by the guest.

    `irq` drives the RTC's interrupt line. While the guest has update or alarm interrupts enabled, a
    timer thread ticks once a second; `close()` ends it.
    """

    name = "CMOS/RTC"

    def __init__(
        self,
        memory_size: int,
        irq: Callable[[int], None],
        *,
        high_memory_size: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`memory_size` is what lies below 4 GiB, `high_memory_size` above; both in bytes."""
        self._irq = irq
        self._now = now
        self._lock = threading.RLock()  # vCPU threads and the timer
        self._timer: threading.Timer | None = None
        self._raised = self._frozen = False
        self._ram = bytearray(_ram(memory_size, high_memory_size))
        self.reset()

    def reset(self) -> None:
        """Interrupts off, the guest's own time and RAM forgotten where they are ours."""
        with self._lock:
            self.close()
            self._index = 0
            self._offset_s = 0.0  # guest time - host time
            self._seen_s = self._now()  # flags in C tell of the seconds after this one
            self._ram[Register.A] = RATES
            self._ram[Register.B] = B.HOURS_24
            self._clear_c()

    def close(self) -> None:
        """End the timer thread. Safe to call twice."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def freeze(self) -> None:
        with self._lock:
            self._frozen = True
            self.close()

    def thaw(self) -> None:
        with self._lock:
            self._frozen = False
            self._schedule()

    def state(self) -> bytes:
        with self._lock:
            return _STATE.pack(self._index, self._offset_s, self._seen_s, self._ram)

    def restore(self, state: bytes) -> None:
        with self._lock:
            self._index, self._offset_s, self._seen_s, ram = _STATE.unpack(state)
            self._ram[:] = ram
            self._drive(self._ram[Register.C] & C.INTERRUPT)
            self._schedule()

    # ── registers ────────────────────────────────────────────────────────────────────────────

    def read_byte(self, offset: int) -> int:
        if offset != DATA:
            return 0xFF  # the index is write-only
        with self._lock:
            index = self._index
            if index in CLOCK and not self._ram[Register.B] & B.SET:
                self._latch()
            if index != Register.C:
                return self._ram[index]
            self._tick()
            value = self._ram[Register.C]
            self._clear_c()
            return value

    def write_byte(self, offset: int, value: int) -> None:
        if offset == INDEX:
            self._index = value & 0x7F
            return
        if offset != DATA or self._index in READ_ONLY:
            return
        with self._lock:
            if self._index == Register.B:
                self._write_b(value)
            elif self._index == Register.A:
                self._ram[Register.A] = value & ~UIP
            elif self._index in CLOCK and not self._ram[Register.B] & B.SET:
                self._latch()
                self._ram[self._index] = value
                self._set_clock()
            else:
                self._ram[self._index] = value

    def _write_b(self, value: int) -> None:
        before = self._ram[Register.B]
        if value & B.SET and not before & B.SET:
            self._latch()
        self._ram[Register.B] = value
        if before & B.SET and not value & B.SET:
            self._set_clock()
        if value & ~before & (B.UPDATE | B.ALARM):
            self._seen_s = self._time()  # what went before raises no interrupt
        self._schedule()

    def _clear_c(self) -> None:
        self._ram[Register.C] = 0
        self._drive(0)

    def _drive(self, active: int) -> None:
        if bool(active) != self._raised:
            self._raised = bool(active)
            self._irq(int(self._raised))

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def _time(self) -> float:
        return self._now() + self._offset_s

    def _latch(self) -> None:
        """Write the present time into the clock registers, in the guest's chosen format."""
        now = time.gmtime(self._time())
        for register, value in (
            (Register.SECONDS, now.tm_sec),
            (Register.MINUTES, now.tm_min),
            (Register.WEEKDAY, (now.tm_wday + 1) % 7 + 1),
            (Register.DAY, now.tm_mday),
            (Register.MONTH, now.tm_mon),
            (Register.YEAR, now.tm_year % 100),
            (Register.CENTURY, now.tm_year // 100),
        ):
            self._ram[register] = self._encode(value)
        self._ram[Register.HOURS] = self._encode_hour(now.tm_hour)

    def _set_clock(self) -> None:
        """Take the clock registers as the time from now on; nonsense in them changes nothing."""
        import calendar  # seldom needed, and slow to load

        ram = self._ram
        year = self._decode(ram[Register.CENTURY]) * 100 + self._decode(ram[Register.YEAR])
        month, day = self._decode(ram[Register.MONTH]), self._decode(ram[Register.DAY])
        minute, second = self._decode(ram[Register.MINUTES]), self._decode(ram[Register.SECONDS])
        hour = self._decode_hour(ram[Register.HOURS])
        if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31):
            return
        if day > calendar.monthrange(year, month)[1] or hour > 23 or minute > 59 or second > 59:
            return
        self._offset_s = calendar.timegm((year, month, day, hour, minute, second)) - self._now()
        self._seen_s = self._time()

    def _encode(self, value: int) -> int:
        if self._ram[Register.B] & B.BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self._ram[Register.B] & B.BINARY:
            return value
        return (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._ram[Register.B] & B.HOURS_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._ram[Register.B] & B.HOURS_24:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + (12 if value & PM else 0)

    # ── interrupts ───────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        """Set the flags of the seconds that passed; raise the interrupt if one is enabled."""
        last, self._seen_s = int(self._seen_s), self._time()
        now = int(self._seen_s)
        if self._ram[Register.B] & B.SET or now <= last:
            return
        flags = C.UPDATE
        # The timer visits every second; after a long pause, looking back a minute is enough.
        if any(self._is_alarm(second) for second in range(max(last + 1, now - 60), now + 1)):
            flags |= C.ALARM
        if flags & self._ram[Register.B]:  # the enables sit at the same bits as the flags
            flags |= C.INTERRUPT
        self._ram[Register.C] |= flags
        self._drive(self._ram[Register.C] & C.INTERRUPT)

    def _is_alarm(self, second: int) -> bool:
        then = time.gmtime(second)
        return all(
            self._ram[register] >= ALARM_ANY or self._ram[register] == value
            for register, value in (
                (Register.SECONDS_ALARM, self._encode(then.tm_sec)),
                (Register.MINUTES_ALARM, self._encode(then.tm_min)),
                (Register.HOURS_ALARM, self._encode_hour(then.tm_hour)),
            )
        )

    def _schedule(self) -> None:
        """Wake at the next full second while an interrupt is enabled, and not otherwise."""
        self.close()
        if self._ram[Register.B] & (B.UPDATE | B.ALARM) and not self._frozen:
            self._timer = threading.Timer(1 - self._time() % 1, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # not one cancelled too late
                self._tick()
                self._schedule()
