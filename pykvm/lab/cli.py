"""``pykvm lab``: its options, and which lab a command goes to.

Reached from `pykvm.cli`. Read `foreground` for how the command's streams and signals pass.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from typing import Any

from pykvm.config import parse_size
from pykvm.errors import ConfigError
from pykvm.lab.client import Lab
from pykvm.lab.machine import Spec
from pykvm.lab.start import IDLE_S, is_kept, stop_kept
from pykvm.layout import MIB
from pykvm.options import seconds

EPILOG = """\
COMMAND sees this host's files and writes them below the current directory; all else it writes
vanishes with the lab. On a terminal, Ctrl-] three times within a second ends it.

exit codes:
  n      the command's own
  124    --timeout
  125    the lab failed
  126    COMMAND cannot be run
  127    there is no COMMAND
  128+n  signal n ended the command, or pykvm
"""


def add_parser(subparsers: Any) -> None:
    """Add ``lab`` to the command line."""
    parser: ArgumentParser = subparsers.add_parser(
        "lab",
        help="run a command inside an emulated machine with a working KVM",
        usage="pykvm lab [options] [-- COMMAND…]",
        description="Run COMMAND, or a shell, on an emulated AMD machine whose /dev/kvm works.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--cpus", type=int, metavar="N", help=f"the lab's CPUs (default: {Spec().cpus})")
    add(
        "-m",
        "--memory",
        metavar="SIZE",
        help=f"the lab's memory, taken from the host as it is used (default: {Spec().memory_mib}M)",
    )
    add("--kernel", metavar="PATTERN", help=f"as 'pykvm kernel fetch' has it ({Spec().kernel})")
    add(
        "--write",
        action="append",
        default=[],
        metavar="DIR",
        help="let COMMAND write to the host below DIR, too; may be repeated",
    )
    add("--timeout", type=_seconds, metavar="S", help="end COMMAND after S seconds, with code 124")
    add(
        "--keep",
        action="store_true",
        help="start a lab that stays; while it does, 'pykvm lab' without -c, -m, --kernel uses it",
    )
    add(
        "--idle",
        type=_seconds,
        default=IDLE_S,
        metavar="S",
        help=f"end a kept lab when it was not used for S seconds (default: {IDLE_S:.0f})",
    )
    add("--stop", action="store_true", help="end the kept lab")
    parser.set_defaults(func=run)


def run(args: Namespace) -> int:
    """Carry out ``pykvm lab``; returns the exit code."""
    if args.stop:
        if not stop_kept():
            print("pykvm: no kept lab is running", file=sys.stderr)
        return 0
    from pykvm.cli_kernel import Report
    from pykvm.lab import foreground

    argv = args.command or [os.environ.get("SHELL", "/bin/sh")]
    lab = choose(args)
    try:
        with Report() as report:
            if os.isatty(2) and not lab.runs():
                report.note("starting the lab, which takes about ten seconds")
            lab.start(report.progress, report.note)
        with lab.connect() as connection:
            return foreground.run(connection, argv, writable=args.write, timeout_s=args.timeout)
    finally:
        lab.close()


def choose(args: Namespace) -> Lab:
    """Return the kept lab when it is asked for, or is there and will do; else a private one."""
    asked = {
        "cpus": args.cpus,
        "memory_mib": args.memory and parse_size(args.memory) // MIB,
        "kernel": args.kernel,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    spec = Spec(**asked)
    kept = is_kept()
    if args.keep and kept and asked:
        raise ConfigError("--keep: a kept lab is running; end it with 'pykvm lab --stop' first")
    keep = args.keep or (kept and not asked)
    return Lab(spec, keep=keep, idle_s=args.idle)


def _seconds(text: str) -> float:
    value = seconds(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value
