"""vCPUs kept outside the guest: all of them for a pause, some of them by a debugger.

Reached from `machine`, which owns one `Parking`. A vCPU that is kicked leaves the guest and calls
`park` on its own thread; there it stays until nobody wants it outside. Read `machine` beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from pykvm.vcpu import Vcpu


class Parking:
    """Where vCPU threads wait. `vcpus` is the machine's list, which may still be empty."""

    def __init__(self, vcpus: list[Vcpu]) -> None:
        self._vcpus = vcpus
        self._changed = threading.Condition()  # all below
        self._pauses = 0  # one within another
        self.releases = 0  # how often vCPUs that were kept outside could go on
        self._parked: set[int] = set()  # vCPUs that wait here
        self._running = 0
        self._held: set[int] = set()  # vCPUs that a debugger keeps out of the guest

    def enter(self) -> None:
        """A vCPU's thread is about to start."""
        with self._changed:
            self._running += 1

    def leave(self) -> None:
        """On a vCPU's thread: it ends."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def is_empty(self, wait_s: float = 0.0) -> bool:
        """Whether no vCPU has a thread, after at most `wait_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, wait_s)

    def begin_pause(self) -> None:
        """Call all vCPUs out of the guest, until `end_pause`. Any thread."""
        with self._changed:
            self._pauses += 1
            outside = set(self._parked)  # those stay: a kick would cost each an exit afterwards
        for vcpu in self._vcpus:
            if vcpu.id not in outside:
                vcpu.kick()

    def end_pause(self) -> None:
        """Let those go on that nobody else keeps. Any thread."""
        with self._changed:
            self._pauses -= 1
            if self._running and not self._pauses:
                self.releases += 1
            self._changed.notify_all()

    def all_parked(self, wait_s: float) -> bool:
        """Whether every vCPU is outside, after at most `wait_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._parked) >= self._running, wait_s)

    def hold(self, vcpus: Iterable[int], but: int | None = None) -> None:
        """Keep these vCPUs outside until `release`; `but` is on its way there by itself."""
        with self._changed:
            new = set(vcpus) - self._held
            self._held |= new
            new -= self._parked
        for id in new - {but}:
            self._vcpus[id].kick()

    def release(self, vcpus: Iterable[int]) -> None:
        """Let these vCPUs go on. Any thread."""
        with self._changed:
            self._held -= set(vcpus)
            self._changed.notify_all()

    def park(self, vcpu: Vcpu, ended: Callable[[], bool]) -> None:
        """On a kicked vCPU's thread: stay until nobody wants it outside, or `ended`."""

        def free() -> bool:
            return not self._pauses and vcpu.id not in self._held

        with self._changed:
            if free():
                return
            self._parked.add(vcpu.id)
            self._changed.notify_all()
            self._changed.wait_for(lambda: ended() or free())
            self._parked.discard(vcpu.id)
