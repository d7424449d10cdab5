"""Is the guest still alive? A panic on the console, a machine that can never run again.

Reached from `machine`'s watching thread. Both answers are certain, not guesses: a panic is Linux's
own words at the start of a line; a stuck machine is one in which nothing can change any more.
"""

from __future__ import annotations

from pykvm._core import lib
from pykvm.lean import Record
from pykvm.vcpu import GENERAL_REGISTERS, Vcpu

RFLAGS_IF = 1 << 9
STAMP = rb"(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? )?"
PANIC = b"Kernel panic - not syncing"
PANIC_END = b"---[ end Kernel panic"
# The guest means what follows these: not a crash.
RESTART = (b"reboot: Restarting system", b"reboot: machine restart")
HALT = (b"reboot: System halted",)
UNPACKING_FAILED = b"Initramfs unpacking failed"  # it goes on with the files that it has

GRACE_S = 10.0  # after the panic line, for the trace that follows
GRACE_END_S = 0.5  # after the line that ends the trace: for `panic=-1` to reboot


def kernel_says(text: bytes | bytearray, *messages: bytes) -> bool:
    """Whether a line of `text` is one of Linux's `messages`, with a time stamp or without."""
    for message in messages:
        if message in text:
            import re  # only now: it takes as long as making a machine

            if re.search(rb"^" + STAMP + re.escape(message), text, re.MULTILINE):
                return True
    return False


class PanicWatch:
    """Reads the console for Linux's panic message."""

    def __init__(self) -> None:
        self._line_start = 0  # everything before it was looked at
        self.seen = False
        self.complete = False

    def feed(self, log: bytearray, dropped: int = 0) -> None:
        """Look at what `log` has gained; `dropped` bytes were cut from its front."""
        self._line_start = max(0, self._line_start - dropped)
        new = bytes(log[self._line_start :])
        self.seen = self.seen or kernel_says(new, PANIC)
        self.complete = self.seen and (self.complete or kernel_says(new, PANIC_END))
        self._line_start += new.rfind(b"\n") + 1

    @property
    def grace_s(self) -> float:
        """How long the guest may still go on."""
        return GRACE_END_S if self.complete else GRACE_S


class Snapshot(Record):
    """One vCPU at one moment, as far as deciding needs it."""

    mp_state: int
    interrupts: bool
    registers: tuple[int, ...]

    @classmethod
    def of(cls, vcpu: Vcpu) -> Snapshot:
        regs = vcpu.get_regs()
        values = tuple(getattr(regs, name) for name in GENERAL_REGISTERS)
        return cls(vcpu.get_mp_state(), bool(regs.rflags & RFLAGS_IF), values)

    @property
    def asleep(self) -> bool:
        """Whether only another vCPU could wake it: halted deaf, or waiting for INIT or SIPI."""
        if self.mp_state == lib.KVM_MP_STATE_HALTED:
            return not self.interrupts
        return self.mp_state in (lib.KVM_MP_STATE_UNINITIALIZED, lib.KVM_MP_STATE_INIT_RECEIVED)


class Health:
    """Decides whether a machine that makes no exits can still do anything."""

    REPEATS = 2  # equal register sets in a row that make a loop without effect

    def __init__(self) -> None:
        self._last: list[Snapshot] = []
        self._equal = 0

    def check(self, now: list[Snapshot]) -> str:
        """``halted``, ``hung`` or "" (alive), from all vCPUs of a paused machine.

        Called only when there was no exit and no console byte since the last call.
        """
        if all(vcpu.asleep for vcpu in now):
            return "halted"
        self._equal = self._equal + 1 if now == self._last else 0
        self._last = now
        # A running vCPU with interrupts off whose every register stays the same does nothing but
        # jump to itself; with interrupts on, something may still come.
        deaf = all(vcpu.asleep or not vcpu.interrupts for vcpu in now)
        return "hung" if deaf and self._equal >= self.REPEATS else ""

    def forget(self) -> None:
        """The guest did something: start over."""
        self._last, self._equal = [], 0
