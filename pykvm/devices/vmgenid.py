"""The VM generation id: 16 random bytes in guest memory that differ in every copy of a machine.

Reached from `machine`, which draws one at boot, and from `snapshot`, which draws another for every
machine that is restored or forked. It is no device on a bus: the guest finds the bytes by ACPI
(`acpi`), and hears of new ones by a general-purpose event (`devices/pm.py`), whereupon Linux
(drivers/virt/vmgenid.c) seeds its random numbers anew. Source: Microsoft, "Virtual Machine
Generation ID" (2012).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pykvm import layout
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

SIZE: Final = 16


class GenerationId:
    """The id of one machine: drawn once, its own for as long as it lives, resets included."""

    def __init__(self, memory: GuestMemory, notify: Callable[[], None]) -> None:
        self._memory = memory
        self._notify = notify
        self.value = os.urandom(SIZE)

    def place(self) -> None:
        """Write it into guest memory. The guest is not told."""
        self._memory.write(layout.VM_GENERATION_ID, self.value)

    def announce(self) -> None:
        """Write it where another machine's is, and tell the guest. The machine is at rest."""
        self.place()
        self._notify()

    def replace(self) -> None:
        """The same, unless it is there already."""
        if self._memory.read(layout.VM_GENERATION_ID, SIZE) != self.value:
            self.announce()
