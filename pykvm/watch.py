"""Watching a run: console bytes, the deadline, a panic, a machine that is dead.

Reached from `Machine.run`, on the caller's thread, while the vCPUs run on theirs. Read `health` for
what counts as dead, `console` for the other end of the serial line.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from pykvm.console import Console
from pykvm.health import Health, Snapshot
from pykvm.lean import TYPE_CHECKING
from pykvm.outcome import Reason

if TYPE_CHECKING:
    from pykvm.machine import Machine

CONSOLE_KEPT = 4 << 20  # bytes of console output kept for `Outcome.console`, at least
INPUT_AHEAD = 1 << 16  # bytes read from the console ahead of the guest
LINE_S = 0.001  # how long a console byte waits for the rest of its line
ROUNDS = 16  # of taking what the guest has sent, before other things have their turn
SILENCE_S = 60.0  # without a word from the guest, after which the user is told
HEALTH_FIRST_S, HEALTH_LONGEST_S = 0.5, 8.0  # between looks at a silent machine


class Watcher:
    """One run's watch over `machine`, whose console leads to `console`."""

    def __init__(self, machine: Machine, console: Console, timeout: float | None) -> None:
        self._machine = machine
        self._console = console
        now = time.monotonic()
        self._deadline = None if timeout is None else now + timeout
        self._panic_at: float | None = None
        self._input = machine.unread_input
        self._unwritten = bytearray()  # from the guest; the console has no room for it yet
        self._health = Health()
        self._health_at = now + HEALTH_FIRST_S
        self._health_interval = HEALTH_FIRST_S
        self._exits = -1  # at the last look
        self._silent_at = now + SILENCE_S if machine.on_silence else None
        self._looked_at = now

    def watch(self) -> None:
        """Return when the run has ended, by somebody else or by what is seen here."""
        while not self._machine.ended:
            due = self._look(time.monotonic())
            if not self._machine.ended:
                self._wait(max(0.0, due - time.monotonic()))

    def _look(self, now: float) -> float:
        """End the run if it is time to; return when to look again."""
        machine, panic = self._machine, self._machine.panic
        stood, self._looked_at = now - self._looked_at, now
        if machine.debugger and machine.debugger.stopped:
            self._forgive(stood)
            return now + HEALTH_LONGEST_S
        if now >= self._health_at:
            self._look_after_health(now)
        times = [self._health_at]
        if machine.tracer is not None:
            times.append(machine.tracer.tick(now))
        if machine.checkpointing is not None:
            times.append(machine.checkpointing.tick(now))
        if self._silent_at is not None:
            times.append(self._silent_at)
            self._listen(now)
        if not panic.seen:
            self._panic_at = None  # seen before the machine was reset
        else:
            self._panic_at = self._panic_at or now
            times.append(self._panic_at + panic.grace_s)
            if now >= times[-1]:
                machine.stop(Reason.PANIC)
        if self._deadline is not None:
            times.append(self._deadline)
            if now >= self._deadline:
                machine.stop(Reason.TIMEOUT)
        return min(times)

    def _listen(self, now: float) -> None:
        """Tell, once, of a guest that has not said a word: it may hang, or talk to another device.

        Not to end it: neither is certain.
        """
        machine = self._machine
        if machine.console_log:
            self._silent_at = None
        elif self._silent_at is not None and now >= self._silent_at:
            self._silent_at = None
            if machine.on_silence is not None:
                machine.on_silence(self._whereabouts().decode().replace("\r", ""))

    def _look_after_health(self, now: float) -> None:
        """A machine that made no exit since the last look may be dead. Ever more seldom."""
        machine = self._machine
        exits = machine.exits
        if exits != self._exits:
            self._exits, self._health_interval = exits, HEALTH_FIRST_S
            self._health.forget()
        else:
            with machine.paused():
                states = [Snapshot.of(vcpu) for vcpu in machine.vcpus]
            match self._health.check(states):
                case "halted":
                    self._dead(Reason.HALTED)
                case "hung":
                    self._dead(Reason.HUNG)
            self._health_interval = min(self._health_interval * 2, HEALTH_LONGEST_S)
        self._health_at = now + self._health_interval

    def _dead(self, reason: Reason) -> None:
        """Nothing can happen any more: the end, unless a gdb is there to look."""
        debugger = self._machine.debugger
        if debugger and debugger.connected:
            debugger.give_up(f"the guest is {reason.value}")
        else:
            self._machine.stop(reason)

    def _forgive(self, seconds: float) -> None:
        """The guest stood still for a debugger: these seconds do not count."""
        self._health_at += seconds
        if self._silent_at is not None:
            self._silent_at += seconds
        if self._deadline is not None:
            self._deadline += seconds
        if self._panic_at is not None:
            self._panic_at += seconds

    def _wait(self, seconds: float) -> None:
        """Sleep until there is something to move, at most `seconds`; then move it."""
        serial, hvc, console = self._machine.serial, self._machine.hvc, self._console
        outputs = {serial.output_fd} | ({hvc.output_fd} if hvc else set())
        inputs = console.input_fds() if len(self._input) < INPUT_AHEAD else []
        poll = select.poll()
        tracer = self._machine.tracer
        traces = [tracer.event_fd] if tracer is not None else []
        for fd in (self._machine.requests.wake_fd, serial.input_fd, *inputs, *traces):
            poll.register(fd, select.POLLIN)
        if not self._write():  # what more the guest says waits in its own transmitter
            poll.register(console.output_fd(), select.POLLOUT)
        else:
            for fd in outputs:
                poll.register(fd, select.POLLIN)
        if hvc and self._input:
            poll.register(hvc.input_fd, select.POLLOUT)
        debugger = self._machine.debugger
        for fd, events in debugger.polls() if debugger else ():
            poll.register(fd, events)
        ready = {fd for fd, _ in poll.poll(min(seconds, console.look_again_s) * 1000)}
        if debugger and not self._machine.ended:
            debugger.serve(ready)
        for fd in ready.intersection(inputs):
            self._input += console.read(fd)
        for letter in console.take_commands():
            self._obey(letter)
        if outputs & ready and not self._machine.ended:
            time.sleep(LINE_S)
        serial.clear_events()
        self.move_output()
        self._machine.requests.serve()
        if self._input:
            del self._input[: (hvc or serial).give(bytes(self._input))]
        if hvc:
            hvc.resize(console.window())

    def move_output(self) -> None:
        """Bring what the guest has sent to the console, as long as it has room, and to the log."""
        for _ in range(ROUNDS):
            if not self._write() or not self._take():
                return
        self._machine.requests.wake()  # there is more; but other things have their turn first

    def finish(self, patience_s: float | None) -> None:
        """The run is over: bring the rest to the console.

        Gives up when that has no room for `patience_s`, or when `Machine.stop` is called meanwhile.
        """
        self.make_room()
        wake_fd = self._machine.requests.wake_fd
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(wake_fd)  # what ended the run
        while not self._write():
            poll = select.poll()
            poll.register(wake_fd, select.POLLIN)
            poll.register(self._console.output_fd(), select.POLLOUT)
            ready = {fd for fd, _ in poll.poll(patience_s and patience_s * 1000)}
            if not ready or wake_fd in ready:
                return

    def make_room(self) -> None:
        """Take all that the guest has sent: a vCPU may wait for that while the console does not."""
        while self._take():
            pass

    def _take(self) -> bool:
        """Take what the guest has sent; tell whether there was something."""
        log = self._machine.console_log
        data = self._machine.serial.take()
        if self._machine.hvc:
            data += self._machine.hvc.take()
        log += data
        if data and self._machine.tracer is not None:
            self._machine.tracer.console(data)
        excess = len(log) - 2 * CONSOLE_KEPT
        dropped = CONSOLE_KEPT + excess if excess > 0 else 0
        del log[:dropped]
        self._machine.panic.feed(log, dropped)
        for trigger in self._machine.console_triggers:
            trigger.feed(log, dropped)
        self._unwritten += data
        return bool(data)

    def _write(self) -> bool:
        """Write what the console has room for; tell whether that was all."""
        while self._unwritten:
            count = self._console.write(bytes(self._unwritten))
            if count == 0:
                return False
            del self._unwritten[:count]
        return True

    def _obey(self, letter: str) -> None:
        """A Ctrl-A command of the terminal's."""
        match letter:
            case "x":
                self._machine.stop(Reason.QUIT)
            case "p":
                self._machine.power.press_power_button()
            case "s":
                self._take_snapshot()
            case "?":
                self._unwritten += self._whereabouts()
            case "h":
                from pykvm.terminal import HELP

                self._unwritten += HELP.encode()

    def _take_snapshot(self) -> None:
        if self._machine.on_snapshot_key is None:
            from pykvm.snapshot.trigger import arm

            arm(self._machine, None, [])
        assert self._machine.on_snapshot_key is not None
        self._machine.on_snapshot_key()

    def _whereabouts(self) -> bytes:
        """Where each vCPU is, in lines for a terminal."""
        from pykvm.report import where

        with self._machine.paused():
            lines = [line for vcpu in self._machine.vcpus for line in where(self._machine, vcpu)]
        return "".join(f"\r\n{line}" for line in [*lines, ""]).encode()
