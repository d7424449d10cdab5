"""ACPI's PM1a and GPE0 registers: how a guest powers off and hears of the power button and events.

Reached from the bus at `layout.PORT_PM1A_EVENT`: PM1a's status, enable and control and GPE0's
status and enable lie together in eight bytes. Read `acpi`, whose FADT, \\_S5 and \\_GPE describe
them. Source: ACPI 6.5 §4.8.3.1 "PM1 Event Grouping", §4.8.3.2 "PM1 Control Grouping" and §4.8.4.1
"General-Purpose Event Register Blocks".
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from pykvm.devices.bytewide import ByteWide
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

STATUS: Final = 0  # offsets; each register is two bytes, GPE0's are one
ENABLE: Final = 2
CONTROL: Final = 4
GPE_STATUS: Final = 6
GPE_ENABLE: Final = 7
SIZE: Final = 8

PWRBTN: Final = 1 << 8  # PWRBTN_STS and PWRBTN_EN
WRITABLE_ENABLE: Final = 0x0721  # TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN
GPE_NEW_ID: Final = 0  # the event, a bit's number: the VM generation id is another one
GPES: Final = 1 << GPE_NEW_ID  # those that there are
SCI_EN: Final = 1 << 0  # always set: there is no legacy mode to leave
SLP_TYP_SHIFT: Final = 10  # SLP_TYPx, three bits
GBL_RLS: Final = 1 << 2  # write-only: there is no firmware to release the global lock to
SLP_EN: Final = 1 << 13  # write-only

# SLP_TYPx of \_S5. 0 as on QEMU's chipsets, so that the well-known outw(0x2000, 0x604) works too.
SLP_TYP_S5: Final = 0

_STATE: Final = struct.Struct("<HHHBB")


class PowerManagement(ByteWide):
    """Power-off, power button, events. `irq` drives the SCI: a level, changed only when it must."""

    name = "ACPI PM1a"

    def __init__(self, on_poweroff: Callable[[], None], irq: Callable[[int], None]) -> None:
        self._on_poweroff = on_poweroff
        self._irq = irq
        self._lock = threading.Lock()  # vCPU threads and press_power_button()
        self._status = 0
        self._enable = 0
        self._control = SCI_EN
        self._gpe_status = 0
        self._gpe_enable = 0
        self._level = 0

    def press_power_button(self) -> None:
        """Ask the guest to shut down. Any thread. A guest without ACPI does not notice."""
        with self._lock:
            self._status |= PWRBTN
            self._update_irq()

    def raise_event(self, gpe: int) -> None:
        """Set the status of a general-purpose event. Any thread. A guest without ACPI does not
        notice: it enabled none."""
        with self._lock:
            self._gpe_status |= 1 << gpe
            self._update_irq()

    def read_byte(self, offset: int) -> int:
        return self.state()[offset] if offset < SIZE else 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        if offset >= SIZE:
            return
        shift = 8 * (offset & 1)
        mask = 0xFF << shift
        word = value << shift
        register = offset & ~1
        with self._lock:
            if offset == GPE_STATUS:
                self._gpe_status &= ~value  # write one to clear
            elif offset == GPE_ENABLE:
                self._gpe_enable = value & GPES
            elif register == STATUS:
                self._status &= ~word  # write one to clear
            elif register == ENABLE:
                self._enable = self._enable & ~mask | word & WRITABLE_ENABLE
            else:
                self._control = self._control & ~mask | word & ~(SLP_EN | GBL_RLS) | SCI_EN
            self._update_irq()
        # SLP_TYPx and SLP_EN share a byte, so byte writes cannot tear them.
        if register == CONTROL and word & SLP_EN and word >> SLP_TYP_SHIFT & 7 == SLP_TYP_S5:
            self._on_poweroff()

    def reset(self) -> None:
        with self._lock:
            self._status, self._enable, self._control = 0, 0, SCI_EN
            self._gpe_status = self._gpe_enable = 0
            self._update_irq()

    def state(self) -> bytes:
        events = self._gpe_status, self._gpe_enable
        return _STATE.pack(self._status, self._enable, self._control, *events)

    def restore(self, state: bytes) -> None:
        with self._lock:
            self._status, self._enable, self._control, *events = _STATE.unpack(state)
            self._gpe_status, self._gpe_enable = events
            self._update_irq()

    def _update_irq(self) -> None:
        level = int(bool(self._status & self._enable or self._gpe_status & self._gpe_enable))
        if level != self._level:
            self._level = level
            self._irq(level)
