"""A machine on the terminal: notes before, its console meanwhile, a report after.

Reached from `cli_boot` and `cli_restore`. Read `terminal` for the keys, `run` for the rest.
"""

from __future__ import annotations

import gc
import sys

from pykvm.cli import complain
from pykvm.lean import TYPE_CHECKING, signal

if TYPE_CHECKING:
    from typing import Any

    from pykvm.console import Console
    from pykvm.debug.follow import Follower
    from pykvm.machine import Machine
    from pykvm.outcome import Outcome


def on_terminal(
    machine: Machine, args: Any, timeout: float | None, follower: Follower | None = None
) -> int:
    """Run a machine on the terminal: notes before, report after. Returns the exit code."""
    from pykvm.console import open_console

    with machine:
        gc.enable()  # see `cli.script`
        for note in machine.entry.notes:
            complain(f"pykvm: {note}")
        if args.snapshot or args.snapshot_at or args.diff or args.snapshot_disks:
            from pykvm.snapshot.trigger import arm

            where = (args.snapshot, args.snapshot_at, args.diff)
            arm(machine, *where, disks=args.snapshot_disks)
        if machine.debugger:
            waiting = "; the guest waits for it" if machine.config.wait_gdb else ""
            print(
                f"pykvm: gdb: target remote {machine.debugger.where}{waiting}",
                file=sys.stderr,
                flush=True,
            )
        console = open_console(args.serial)
        try:
            _catch_signals(machine, console)
            outcome = machine.run(timeout, console, follower.tracer if follower else None)
        finally:
            for each in (signal.SIGWINCH, signal.SIGCONT):
                signal.signal(each, signal.SIG_DFL)
            console.close()
    if follower is not None:
        follower.report()
    _tell(outcome)
    return outcome.code


def _tell(outcome: Outcome) -> None:
    report = outcome.report
    if outcome.code and not report:
        from pykvm.health import UNPACKING_FAILED, kernel_says

        if kernel_says(outcome.console, UNPACKING_FAILED):
            report = (
                "the guest's kernel could not unpack all of the initrd, and went on: if a file is "
                "missing there, give it more with --memory"
            )
    if report:
        if outcome.console and not outcome.console.endswith(b"\n"):
            complain("")
        complain(f"pykvm: {report}")


def _catch_signals(machine: Machine, console: Console) -> None:
    """SIGINT, SIGTERM, SIGHUP: end the machine in order, with the code a shell would show. SIGCONT,
    a shell's fg: take the terminal again."""
    from pykvm.outcome import Reason

    def end(received: int, _frame: object) -> None:
        machine.stop(Reason.SIGNAL, 128 + received)

    def go_on(_received: int, _frame: object) -> None:
        console.resume()
        machine.requests.wake()  # the watcher asks the console what to look at

    signal.signal(signal.SIGCONT, go_on)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:  # nohup
            signal.signal(each, end)
    if machine.hvc:  # the terminal has another size: the watcher looks at that when it is woken
        signal.signal(signal.SIGWINCH, lambda *_: machine.requests.wake())
