"""MSI-X: a vector for each cause of interrupts, masked one by one.

Reached from `pci`. Each vector has an eventfd, which the data plane writes. While the vector is
unmasked KVM listens to it (irqfd) and sends the message of the vector's GSI; while it is masked
nobody listens, so the eventfd itself remembers: that is the pending bit.
Source: PCI Local Bus Specification 3.0, §6.8.2 MSI-X Capability and Table Structure.
"""

from __future__ import annotations

import os
import select
import struct

from pykvm.errors import KvmError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.kvm import Vm

NO_VECTOR: Final = 0xFFFF
ENTRY: Final = struct.Struct("<QII")  # message address, message data, vector control
assert ENTRY.size == 16
MASKED: Final = 1  # of the vector control


class Messages:
    """The messages of all devices: KVM takes them as one table. `vm` sends them."""

    def __init__(self, vm: Vm, first_gsi: int) -> None:
        self.vm = vm
        self._next_gsi = first_gsi
        self._messages: dict[int, tuple[int, int]] = {}

    def new_gsi(self) -> int:
        self._next_gsi += 1
        return self._next_gsi - 1

    def set(self, gsi: int, address: int, data: int) -> bool:
        """Let `gsi` stand for this message. False when KVM has no such message: the guest's
        mistake, not the host's."""
        if self._messages.get(gsi) == (address, data):
            return True
        messages = {**self._messages, gsi: (address, data)}
        try:
            self.vm.set_messages(messages)
        except KvmError:
            return False
        self._messages = messages
        return True


class Vector:
    """One vector: its eventfd, its GSI, and whether KVM listens."""

    def __init__(self, gsi: int) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.gsi = gsi
        self.listening = False

    @property
    def pending(self) -> bool:
        """Whether a message waits for the vector to be unmasked."""
        if self.listening:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))


class Msix:
    """The table and the pending bits of one function."""

    def __init__(self, messages: Messages, count: int) -> None:
        self._messages = messages
        self.vectors = [Vector(messages.new_gsi()) for _ in range(count)]
        self.enabled = self.function_masked = False
        self.table = bytearray(ENTRY.pack(0, 0, MASKED) * count)

    def set_control(self, *, enabled: bool, masked: bool) -> None:
        """The function's own bits, from the capability."""
        self.enabled, self.function_masked = enabled, masked
        self._update()

    def read_table(self, offset: int, size: int) -> int:
        return int.from_bytes(self.table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        if size in (4, 8) and offset % size == 0 and offset + size <= len(self.table):
            self.table[offset : offset + size] = value.to_bytes(size, "little")
            self._update()

    def read_pending(self, offset: int, size: int) -> int:
        """The pending bit array: a bit for each vector."""
        bits = sum(vector.pending << n for n, vector in enumerate(self.vectors))
        return bits >> 8 * offset

    def fd(self, vector: int) -> int:
        """What signals `vector`; -1 when it is none, or MSI-X is off."""
        return self.vectors[vector].fd if self.enabled and vector < len(self.vectors) else -1

    def _update(self) -> None:
        """Let KVM listen to the vectors that are not masked, and to no other."""
        entries = ENTRY.iter_unpack(self.table)
        for vector, (address, data, control) in zip(self.vectors, entries, strict=True):
            unmasked = self.enabled and not self.function_masked and not control & MASKED
            if unmasked and self._messages.set(vector.gsi, address, data):
                if not vector.listening:
                    self._listen(vector)
            elif vector.listening:
                self._messages.vm.irqfd(vector.fd, vector.gsi, assign=False)
                vector.listening = False

    def _listen(self, vector: Vector) -> None:
        was_pending = vector.pending
        if was_pending:
            os.eventfd_read(vector.fd)
        self._messages.vm.irqfd(vector.fd, vector.gsi)
        vector.listening = True
        if was_pending:
            os.eventfd_write(vector.fd, 1)

    def state(self) -> bytes:
        """The table, and a byte a vector that says whether it is pending."""
        return bytes(self.table) + bytes(vector.pending for vector in self.vectors)

    def restore(self, state: bytes) -> None:
        """Take back what `state()` gave; the capability's bits have been set already."""
        self.table[:] = state[: len(self.table)]
        self._update()
        for vector, pending in zip(self.vectors, state[len(self.table) :], strict=True):
            if vector.pending:
                os.eventfd_read(vector.fd)  # of the life before
            if pending:
                os.eventfd_write(vector.fd, 1)

    def close(self) -> None:
        """Close the eventfds. Safe to call twice."""
        for vector in self.vectors:
            os.close(vector.fd)
        self.vectors = []
