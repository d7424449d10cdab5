"""Time travel: checkpoints of a machine, taken while it runs, and the one at which it went wrong.

Reached from `Machine.checkpoints` and `Machine.bisect`, and from `watch`, which takes them. Read
docs/snapshots.md, "Checkpoints"; `snapshot.template` for what a machine is made from.

The memory of the newest is one file, of which the machine is a private copy. Each older one has
what the next one changed, as it was before; so the oldest can be dropped at no cost::

    oldest            ..[=]......[==]......     as they were: these pages, else those of the next
    next              .[==]...[=].....[=]..
    newest (base)     =====================     as it is
    machine           ....[copy]...[copy]..     what was written since

Taking one costs what was written since the last; only the first copies all that was ever touched.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from pykvm.errors import ConfigError, HostError, PykvmError
from pykvm.memory import Region
from pykvm.snapshot import pages
from pykvm.snapshot.diskhistory import DiskHistory, with_own_overlays
from pykvm.snapshot.layers import Layer, Stack, close_files, differing
from pykvm.snapshot.template import Template
from pykvm.snapshot.trigger import CONSOLE, compile_pattern

if TYPE_CHECKING:
    from typing import Any

    from pykvm.machine import Machine
    from pykvm.snapshot.capture import Parts

COUNT: Final = 64
SIZE: Final = 256 << 20
NEVER: Final = float("inf")

Predicate = Callable[["Machine"], object]


class Checkpoint:
    """One moment of a machine. `machine` makes another that goes on from there."""

    def __init__(self, ring: Checkpoints, number: int, parts: Parts, console: int) -> None:
        self.number = number  # 0 is the first that was ever taken
        self.time = time.time()
        self.parts = parts
        self.before: Layer | None = None  # what the next one changed, as it was; see the module
        self._ring = ring
        self._console = console  # bytes that the guest had said

    @property
    def size(self) -> int:
        """Bytes of memory that it costs."""
        return 0 if self.before is None else sum(region.size for region in self.before.ranges)

    def close(self) -> None:
        """Forget it. For its ring, which forgets the oldest first."""
        if self.before is not None:
            os.close(self.before.fd)
            self.before = None

    def machine(self, **changes: Any) -> Machine:
        """A machine that goes on from here, with `changes` to its configuration: as `vm.fork`."""
        return self._ring.machine_at(self, **changes)

    def console_of(self, log: bytearray, dropped: int) -> bytearray:
        """Of what the guest has said by now: what it had said then."""
        return log[: max(0, self._console - dropped)]

    def __repr__(self) -> str:
        return f"<checkpoint {self.number}, {time.strftime('%H:%M:%S', time.localtime(self.time))}>"


class Found(NamedTuple):
    """What `Machine.bisect` found."""

    machine: Machine  # at `before`, ready to run; the caller's to close
    before: Checkpoint  # the last at which the predicate did not hold
    after: Checkpoint  # the next one, at which it did


class Checkpoints:
    """The checkpoints of one machine, oldest first: a ring that forgets the oldest.

    Taken on the thread of `Machine.run`; looked at from any. Raises `ConfigError`.
    """

    def __init__(
        self,
        machine: Machine,
        every: float | str | None = None,
        count: int = COUNT,
        size: int = SIZE,
    ) -> None:
        """`every`: so many seconds that the machine runs, or "console:REGEX", each time that a line
        of the console matches, or None: only by `take`. At most `count` are kept, whose changes
        are at most `size` bytes."""
        self.error: PykvmError | None = None  # why no more are taken
        self._machine = machine
        self._interval, self._pattern = _condition(every)
        if count < 2:
            raise ConfigError(f"checkpoints: count={count} keeps no two to choose from; try 64")
        self._count, self._size = count, size
        self._points: list[Checkpoint] = []
        self._taken = 0
        self._lock = threading.RLock()  # all below, and the files
        self._disks = DiskHistory(machine)
        self._base = _file(machine.memory.size)
        self._epoch = -1  # of the memory, when it is a private copy of `_base`
        self._lent = False  # another machine is, too
        self._dropped = 0  # bytes of the console's log
        self._length = self._seen = len(machine.console_log)  # bytes of it; those looked at
        self._due = time.monotonic() + self._interval
        self._retired: Template | None = None
        try:
            self.take()
        except BaseException:
            self.close()
            raise
        machine.console_triggers.append(self)

    # ── when ─────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float) -> float:
        """Take one if it is time to; returns when the next one is due. On the thread of `run`."""
        if now >= self._due:
            self._take_or_stop()
        return self._due

    def feed(self, log: bytearray, dropped: int = 0) -> None:
        """The console's log has grown; `dropped` bytes were cut from its front."""
        self._follow(log, dropped)
        start, end = self._seen, log.rfind(b"\n") + 1
        if end <= start:
            return
        self._seen = end
        if self._pattern is not None and self._pattern.search(log, start, end):
            self._machine.requests.add(self._take_or_stop)

    def _follow(self, log: bytearray, dropped: int = 0) -> None:
        if len(log) < self._length - dropped:  # it was begun anew, by `reset`
            dropped = self._length
        self._dropped += dropped
        self._seen = max(0, self._seen - dropped)
        self._length = len(log)

    def _take_or_stop(self) -> None:
        """What cannot be saved any more must not end the guest's run."""
        try:
            self.take()
        except PykvmError as error:
            self.error = error
            self.stop()
        self._due = time.monotonic() + self._interval

    def stop(self) -> None:
        """Take no more but by `take`."""
        self._interval, self._pattern, self._due = NEVER, None, NEVER

    def take(self) -> Checkpoint:
        """Take one now. Any thread but a vCPU's."""
        if self._base < 0:
            raise PykvmError("these checkpoints are over; vm.checkpoints() begins new ones")
        return self._machine.at_rest(self._take)

    # ── taking one ───────────────────────────────────────────────────────────────────────────

    def _take(self) -> Checkpoint:
        machine = self._machine
        parts = self._disks.take(machine)
        self._follow(machine.console_log)
        with self._lock:
            before = self._update_or_forget()
            if self._points:
                self._points[-1].before = before
            else:
                os.close(before.fd)
            point = Checkpoint(self, self._taken, parts, self._dropped + self._length)
            self._taken += 1
            self._points.append(point)
            while len(self._points) > 2 and (len(self) > self._count or self.size > self._size):
                self._forget_oldest()
        return point

    def _forget_oldest(self) -> None:
        try:
            self._disks.forget_oldest()
        except BaseException:
            self._forget_all()
            raise
        self._points.pop(0).close()

    def _update_or_forget(self) -> Layer:
        """Half an update would make all older ones false."""
        before = Layer(-1, [])
        try:
            before.fd = _file(self._machine.memory.size)
            self._update(before)
        except BaseException as error:
            close_files(before.fd, ())
            self._forget_all()
            self._epoch = -1
            if isinstance(error, OSError):
                raise HostError(f"checkpoints: {error.strerror}: all of them are lost") from None
            raise
        return before

    def _update(self, before: Layer) -> None:
        """Bring the newest memory's file up to date, and to `before` what was there before."""
        memory, base = self._machine.memory, self._base
        is_ours = memory.epoch == self._epoch
        candidates = list(memory.changes() if is_ours else self._all())
        if self._lent:
            base = _copy(base, memory.size)
        ranges = []
        for offset, data in differing(memory, Stack(base, memory.size), candidates):
            pages.write(before.fd, offset, memoryview(os.pread(base, len(data), offset)))
            pages.write(base, offset, data)
            ranges.append(Region(offset, len(data)))
        before.ranges = list(pages.joined(ranges))
        if is_ours and not self._lent:
            memory.revert(drop=True)  # to the same bytes, which the file has now
            memory.epoch += 1  # for it is another file than it was: see `diff.Ancestor`
        else:
            self._rebase(base)
        self._epoch = memory.epoch

    def _all(self) -> Iterator[Region]:
        """Where the memory may differ from the file when it is no copy of it: the first time, and
        when the machine was forked since."""
        memory = self._machine.memory
        return pages.joined([*pages.touched(memory), *pages.data_of(self._base, memory.size)])

    def _rebase(self, base: int) -> None:
        """Let the machine be a private copy of `base`, which has the same bytes."""
        machine = self._machine
        if not machine.memory.is_private:
            os.close(machine.memory.freeze())
        machine.memory.rebase(base)
        if base != self._base:
            os.close(self._base)
            self._base, self._lent = base, False
        # `reset` would go back to the memory of this file. A fork may be about to use the template.
        if self._retired is not None:
            self._retired.close()
        self._retired, machine.template = machine.template, None

    def _forget_all(self) -> None:
        for point in self._points:
            point.close()
        self._points.clear()
        self._disks.close()

    # ── looking ──────────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """Bytes that the changes between checkpoints take: pages of memory, and what was written
        to disks."""
        return sum(point.size for point in self._points) + self._disks.size

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Checkpoint:
        return self._points[index]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(list(self._points))

    def machine_at(self, point: Checkpoint, **changes: Any) -> Machine:
        """See `Checkpoint.machine`."""
        with self._lock:
            machine = self._make(point, **changes)
            self._lent = True
        return machine

    def _make(self, point: Checkpoint, **changes: Any) -> Machine:
        with self.template_at(point).copy() as template:  # which outlives what is kept here
            template.overlays = self._disks.at(self._points.index(point))
            machine = template.machine(**changes)
        machine.console_log += point.console_of(self._machine.console_log, self._dropped)
        return machine

    def template_at(self, point: Checkpoint) -> Template:
        """What its machines are made from, but for disks; the descriptors stay the checkpoints'."""
        if point not in self._points:
            raise PykvmError(f"{point} is not kept any more: see count= and size=")
        origin = self._machine
        later = self._points[self._points.index(point) : -1]
        layers = [each.before for each in reversed(later) if each.before is not None]
        template = Template(
            with_own_overlays(origin.config),
            origin.entry,
            point.parts,
            self._base,
            generation=origin.generation,
            layers=layers,
        )
        template.placed = origin.memory.placed
        return template

    def bisect(self, predicate: Predicate, **changes: Any) -> Found:
        """See `Machine.bisect`."""
        self.take()
        with self._lock:
            points = list(self._points)
            low, high = 0, len(points) - 1
            if not self._holds(points[high], predicate, changes):
                raise PykvmError("bisect: it does not hold now, so there is no moment to find")
            if self._holds(points[low], predicate, changes):
                raise PykvmError(
                    f"bisect: it holds at {points[low]} already, the oldest that is kept; begin "
                    "earlier, take them less often, or keep more: count=, size="
                )
            while high - low > 1:
                middle = (low + high) // 2
                if self._holds(points[middle], predicate, changes):
                    high = middle
                else:
                    low = middle
            return Found(self.machine_at(points[low], **changes), points[low], points[high])

    def _holds(self, point: Checkpoint, predicate: Predicate, changes: dict[str, Any]) -> bool:
        with self._make(point, **changes) as machine:
            return bool(predicate(machine))

    def close(self) -> None:
        """Forget all. Safe to call twice; machines that were made go on."""
        self.stop()
        if self in self._machine.console_triggers:
            self._machine.console_triggers.remove(self)
        with self._lock:
            self._forget_all()
            if self._base >= 0:
                os.close(self._base)
            self._base = -1
            if self._retired is not None:
                self._retired.close()
                self._retired = None


def _condition(every: float | str | None) -> tuple[float, re.Pattern[bytes] | None]:
    """Seconds between checkpoints, and what a line of the console must match."""
    if every is None:
        return NEVER, None
    if isinstance(every, str):
        return NEVER, compile_pattern(every, "checkpoints: every", f"'{CONSOLE}REGEX', or seconds")
    if not every > 0:
        raise ConfigError(f"checkpoints: every={every} is no time; write seconds")
    return every, None


def _file(size: int) -> int:
    """An empty file of this size, in memory."""
    fd = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
    os.truncate(fd, size)
    return fd


def _copy(file: int, size: int) -> int:
    """Another with the same bytes."""
    copy = _file(size)
    for offset, data in Stack(file, size).pieces():
        pages.write(copy, offset, data)
    return copy
