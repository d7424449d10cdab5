"""A machine's run: the vCPUs' threads, the exits that are no access, and how it ends.

Reached from `machine`, which owns one `Run`. Read `watch` for what the caller's thread does
meanwhile, `parking` for vCPUs that are kept outside the guest, `outcome` for how a run may end.
"""

from __future__ import annotations

import errno
import threading
import time
from _thread import start_new_thread
from contextlib import ExitStack

from pykvm._core import lib
from pykvm.errors import KvmError, PykvmError
from pykvm.health import HALT, RESTART, kernel_says
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.outcome import CODES, Outcome, Reason, Stats
from pykvm.vcpu import Vcpu
from pykvm.watch import Watcher

if TYPE_CHECKING:
    from typing import Any

    from pykvm.console import Console
    from pykvm.debug.flight import FlightRecorder
    from pykvm.debug.trace import Tracer
    from pykvm.machine import Machine

# After these the guest is where it was, and may go on.
RESUMABLE = frozenset({Reason.TIMEOUT, Reason.QUIT, Reason.SIGNAL, Reason.DEBUGGER})
LEAVE_S = 60.0  # for a kicked vCPU to leave the guest: microseconds, but for a sick host
PATIENCE_S = 1.0  # for a reader of the console that does not read, when the user has ended the run

_abandoned: list[ExitStack] = []  # what vCPUs use that have not left the guest and never may


class Ending(Record):
    """Why the run ends; the first one counts."""

    reason: Reason
    code: int
    vcpu: Vcpu | None


class Run:
    """The run of `machine`, which may be resumed. `resources` are what its vCPUs use.

    A vCPU's thread ends it by `finish`; the thread that called `go` joins them all.
    """

    def __init__(self, machine: Machine, resources: ExitStack) -> None:
        self._machine = machine
        self._resources = resources
        self.ending: Ending | None = None
        self.watcher: Watcher | None = None
        self._error: BaseException | None = None  # raised on a vCPU's thread
        self._lock = threading.RLock()  # ending and _error; reentrant: stop() in a signal handler

    def forget(self) -> None:
        """As if there had been none."""
        self.ending = self._error = None

    def go(
        self, timeout: float | None, console: Console, tracer: Tracer | FlightRecorder | None
    ) -> Outcome:
        """As `Machine.run`."""
        if self.ending is not None and self.ending.reason not in RESUMABLE:
            raise PykvmError(f"the machine has ended ({self.ending.reason.value}); make a new one")
        self.forget()
        machine = self._machine
        machine.requests.begin()
        machine.serial.resume()
        watcher = self.watcher = Watcher(machine, console, timeout)
        machine.tracer = tracer
        if tracer is not None:
            tracer.start(machine)
        if machine.debugger:
            machine.debugger.begin()
        started = time.monotonic()
        try:
            self._start_vcpus()
            watcher.watch()
        finally:
            self.finish(Reason.QUIT)  # only counts when an exception brought us here
            machine.parking.release(range(len(machine.vcpus)))  # those that a debugger holds
            machine.serial.stop_waiting()
            self._join()
            if tracer is not None:
                tracer.stop()
            machine.requests.end()
        self._bring_the_rest(watcher)
        if self._error is not None:
            machine.memory.check()  # whether that is why
            raise self._error
        if machine.debugger:
            machine.debugger.let_go()
        outcome = self._outcome(time.monotonic() - started)
        if machine.debugger:
            machine.debugger.say_goodbye(outcome.code)
        return outcome

    def _bring_the_rest(self, watcher: Watcher) -> None:
        """What the guest has sent goes to the console, which gets less time if the user is done."""
        machine = self._machine
        by_user = self.ending is not None and self.ending.reason in RESUMABLE
        for device in (machine.hvc, machine.virtio_console):
            if device is not None and not by_user and self._error is None:
                device.flush(machine.requests.wake_fd, watcher.make_room)
        watcher.finish(PATIENCE_S if by_user or self._error else None)

    # ── threads ──────────────────────────────────────────────────────────────────────────────

    def _start_vcpus(self) -> None:
        """Start a thread for each vCPU; `parking` knows when they have ended.

        Not `threading.Thread`, whose `start` waits until the thread has begun: that would be a
        tenth of the time from a machine's configuration to its first exit.
        """
        for vcpu in self._machine.vcpus:
            self._machine.parking.enter()
            try:
                start_new_thread(self._vcpu_thread, (vcpu,))
            except RuntimeError:  # the host has no room for it
                self._machine.parking.leave()
                raise

    def _vcpu_thread(self, vcpu: Vcpu) -> None:
        machine = self._machine
        lib.pk_thread_name(b"vcpu %d" % vcpu.id)  # as ps and top show it
        try:
            vcpu.run(machine.pio_bus, machine.mmio_bus, self._on_exit)
        except BaseException as error:  # handed to the caller of go()
            with self._lock:
                self._error = self._error or error
            self.finish(Reason.INTERNAL_ERROR, vcpu=vcpu)
        finally:
            machine.parking.leave()

    def _join(self) -> None:
        """Wait for vCPU threads that have been kicked. Raises as `expect_vcpus`."""
        kicked = time.monotonic()
        while not self._machine.parking.is_empty(wait_s=1.0):
            self.expect_vcpus(kicked)

    def expect_vcpus(self, kicked: float) -> None:
        """Raise `KvmError` when a vCPU is in the guest long after it was kicked, at `kicked`: else
        neither `--timeout` nor a signal would end such a machine."""
        if time.monotonic() - kicked < LEAVE_S:
            return
        stuck = [vcpu.id for vcpu in self._machine.vcpus if vcpu.handle.tid]
        if not stuck:
            return  # a device of the user's takes its time
        _abandoned.append(self._resources.pop_all())
        raise KvmError(
            "KVM_RUN",
            errno.ETIME,
            f"vCPU {stuck[0]} was told to leave the guest {LEAVE_S:.0f} s ago and has not: this "
            "host is overloaded or its KVM at fault; try the lab: pykvm lab -- pykvm boot …",
        )

    def _on_exit(self, vcpu: Vcpu, exit: Any) -> bool:
        """Every exit that is no access. True: go on. On the vCPU's thread."""
        machine = self._machine
        if machine.control is not None and machine.control.on_exit(vcpu, exit):
            machine.parking.park(vcpu, lambda: self.ending is not None)
            return self.ending is None
        match exit.kind:
            case lib.PK_EXIT_KICK:
                machine.parking.park(vcpu, lambda: self.ending is not None)
            case lib.PK_EXIT_SHUTDOWN:
                self.finish(Reason.TRIPLE_FAULT, vcpu=vcpu)
            case lib.PK_EXIT_FAIL_ENTRY:
                self.finish(Reason.FAIL_ENTRY, vcpu=vcpu)
            case lib.PK_EXIT_SYSTEM if exit.data == lib.KVM_SYSTEM_EVENT_SHUTDOWN:
                self.finish(Reason.POWEROFF, vcpu=vcpu)
            case lib.PK_EXIT_SYSTEM if exit.data == lib.KVM_SYSTEM_EVENT_RESET:
                self.finish(Reason.REBOOT)
            case lib.PK_EXIT_SYSTEM:
                self.finish(Reason.PANIC, vcpu=vcpu)
            case _:
                self.finish(Reason.INTERNAL_ERROR, vcpu=vcpu)
        return self.ending is None

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def finish(self, reason: Reason, code: int | None = None, vcpu: Vcpu | None = None) -> None:
        """End the run; the first call counts. Any thread; the guest runs no further instruction
        on the calling vCPU's thread, because a kicked vCPU does not enter it again."""
        with self._lock:
            if self.ending is None:
                self.ending = Ending(reason, CODES[reason] if code is None else code, vcpu)
        for each in self._machine.vcpus:
            each.kick()
        self._machine.requests.wake()

    def _outcome(self, seconds: float) -> Outcome:
        ending, machine = self.ending, self._machine
        assert ending is not None
        reason, code = self._verdict(ending)
        report = ""
        if code != 0 and reason not in (Reason.EXIT, Reason.QUIT, Reason.SIGNAL):
            from pykvm.report import describe

            report = describe(machine, reason, ending.vcpu)
        stats = Stats(machine.exits, int(lib.pk_bus_count(machine.c_bus)), seconds)
        return Outcome(reason, code, bytes(machine.console_log), stats, report)

    def _verdict(self, ending: Ending) -> tuple[Reason, int]:
        """What the ending means, with the console's last words in view."""
        reason, code = ending.reason, ending.code
        machine = self._machine
        if machine.panic.seen and reason in (Reason.REBOOT, Reason.TRIPLE_FAULT, Reason.HALTED):
            reason = Reason.PANIC  # the kernel died, then did what panic= asks
        elif reason is Reason.TRIPLE_FAULT and kernel_says(machine.console_log, *RESTART):
            reason = Reason.REBOOT  # Linux's reboot=triple
        elif reason is Reason.HALTED and kernel_says(machine.console_log, *HALT):
            reason = Reason.POWEROFF  # Linux's halt, on a machine that stays on
        return (reason, code) if reason is ending.reason else (reason, CODES[reason])
