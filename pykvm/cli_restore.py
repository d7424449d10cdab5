"""``pykvm restore``: a snapshot goes on, on the terminal.

Reached from `cli`. Read `snapshot.load` for what is checked, `cli_terminal` for the rest.
"""

from __future__ import annotations

from pykvm.cli_options import GDB, HELP, SNAPSHOT, SNAPSHOT_AT, SNAPSHOT_DISKS, TIMEOUT, WAIT_GDB
from pykvm.cli_terminal import on_terminal
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.options import Option, describe, number, parse, seconds

if TYPE_CHECKING:
    from typing import Any

USAGE = """\
usage: pykvm restore [options] DIR

Go on where the machine was that 'pykvm boot --snapshot' (or --snapshot-at, Ctrl-A s, the API's
Machine.snapshot) saved in DIR. The snapshot stays as it is, and can be restored again. It is
refused when it is damaged, or when its disks or this host's processor are not what they were.
Devices find their files, networks and sockets where they were, unless an option says where they
are now; what that option does not say stays as it was.

options:
{options}

Exit codes are those of 'pykvm boot'."""

OPTIONS = (
    Option(
        "--disk",
        "[vdX=]FILE[,…]",
        "where the next disk (or vdX) is now, with options as of 'pykvm boot'; it must be as large "
        "as it was, and is not asked whether it has changed",
        repeated=True,
    ),
    Option(
        "--net",
        "[ethN=]tap=NAME|bridge=NAME|user|socket=PATH[,…]",
        "where the next card's (or ethN's) cable leads now, with options as of 'pykvm boot'",
        repeated=True,
    ),
    Option("--vsock", "PATH[,cid=N]", "where the guest's sockets are now"),
    Option("--port", "NAME=WHERE", "where the byte channel NAME leads now", repeated=True),
    Option(
        "--identity",
        "HOW",
        "of MACs and CID that nobody chose: new, or keep those that the machine had",
        "new",
    ),
    Option(
        "--clock", "HOW", "stay: the guest sees no time passed; step: it sees all of it", "stay"
    ),
    Option("--prefault", "", "map all of the memory before the guest goes on"),
    Option(
        "--lazy",
        "",
        "read the memory, and check it, piece by piece when the guest first needs it: for a file "
        "that is far away or was copied",
    ),
    Option("--verify", "", "read all of the memory and compare its checksums"),
    Option(
        "--serial",
        "WHERE",
        "stdio, none, pty, file:PATH or unix:PATH (default: stdio, or none where a byte channel "
        "leads there)",
    ),
    SNAPSHOT,
    SNAPSHOT_AT,
    SNAPSHOT_DISKS,
    Option("--diff", "", "let snapshots have only the pages that changed since the one restored"),
    GDB,
    WAIT_GDB,
    TIMEOUT,
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
    from pykvm.machine import Machine

    timeout = number(args.timeout, "--timeout", seconds)
    asked = {
        "disks": args.disk,
        "nets": args.net,
        "vsock": args.vsock,
        "ports": args.port,
        "gdb": args.gdb,
        "wait_gdb": args.wait_gdb,
    }
    changes = {name: value for name, value in asked.items() if value}
    machine = Machine.restore(
        args.operands[0],
        clock=args.clock,
        prefault=args.prefault,
        lazy=args.lazy,
        verify=args.verify,
        identity=args.identity,
        **changes,
    )
    args.diff = args.operands[0] if args.diff else None
    if args.serial is None:
        taken = any(port.where in ("stdio", "stdin", "stdout") for port in machine.config.ports)
        args.serial = "none" if taken else "stdio"
    return on_terminal(machine, args, timeout)
