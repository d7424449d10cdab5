"""``pykvm restore``: a snapshot goes on, on the terminal.

Reached from `cli`. Read `snapshot.load` for what is checked, `cli_boot` for what is the same.
"""

from __future__ import annotations

from pykvm.cli_options import HELP, SNAPSHOT, SNAPSHOT_AT, TIMEOUT
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.options import Option, describe, number, parse

if TYPE_CHECKING:
    from typing import Any

USAGE = """\
usage: pykvm restore [options] DIR

Go on where the machine was that 'pykvm boot --snapshot' (or --snapshot-at, Ctrl-A s, the API's
Machine.snapshot) saved in DIR. The snapshot stays as it is, and can be restored again. It is
refused when it is damaged, or when its disks or this host's processor are not what they were.

options:
{options}

Exit codes are those of 'pykvm boot'."""

OPTIONS = (
    Option(
        "--disk",
        "FILE[,ro][,serial=TEXT][,cache=MODE][,queues=N]",
        "where a disk is now, one for each the machine has and in their order; taken as it is",
        repeated=True,
    ),
    Option(
        "--clock", "HOW", "stay: the guest sees no time passed; step: it sees all of it", "stay"
    ),
    Option("--prefault", "", "map all of the memory before the guest goes on"),
    Option("--verify", "", "read all of the memory and compare its checksums"),
    Option(
        "--serial",
        "WHERE",
        "stdio, none, pty, file:PATH or unix:PATH (default: stdio)",
        "stdio",
    ),
    TIMEOUT,
    SNAPSHOT,
    SNAPSHOT_AT,
    Option("--diff", "", "let snapshots have only the pages that changed since the one restored"),
    HELP,
)


def main(words: list[str], command: list[str]) -> int:
    """``pykvm restore WORDS``; returns the exit code."""
    args = parse(words, OPTIONS, "restore")
    if args.help:
        print(USAGE.format(options=describe(OPTIONS)))
        return 0
    if len(args.operands) != 1 or command:
        raise ConfigError("DIR: name one folder that a snapshot is in; see 'pykvm restore --help'")
    return run(args)


def run(args: Any) -> int:
    """Carry out ``pykvm restore``; returns the exit code."""
    from pykvm.cli_boot import on_terminal
    from pykvm.machine import Machine

    timeout = number(args.timeout, "--timeout", float)
    changes: dict[str, Any] = {}
    if args.disk:
        from pykvm.virtio.config.disk import parse_disk

        changes["disks"] = tuple(map(parse_disk, args.disk))
    machine = Machine.restore(
        args.operands[0],
        clock=args.clock,
        prefault=args.prefault,
        verify=args.verify,
        **changes,
    )
    args.diff = args.operands[0] if args.diff else None
    return on_terminal(machine, args, timeout)
