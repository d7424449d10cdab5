"""The command line of every command but ``boot``: argparse.

Reached from `cli`. Each command is a module with `add_parser(subparsers)`; only the one that was
asked for is imported. Read `cli_boot` for the command that has a parser of its own.
"""

from __future__ import annotations

import gc
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from pykvm import __version__
from pykvm.outcome import CODE_FAILURE

# Module (None: `cli` knows it), gloss.
COMMANDS = {
    "boot": (None, "boot a kernel and give back its verdict"),
    "shell": (None, "a Python prompt with a machine that has not started; boot's options"),
    "restore": (None, "go on where a snapshot was taken"),
    "snapshot": ("pykvm.cli_snapshot", "show and compact snapshots"),
    "kernel": ("pykvm.cli_kernel", "fetch, build and list kernels"),
    "explain": ("pykvm.cli_explain", "tell where the time of a traced boot went"),
    "doctor": ("pykvm.cli_doctor", "find out what this host's KVM can do"),
    "lesson": ("pykvm.cli_lesson", "learn how a hypervisor works, in twelve lessons"),
    "lab": ("pykvm.lab", "run a command inside an emulated machine with a working KVM"),
}


class _Parser(ArgumentParser):
    """An ArgumentParser whose errors leave with 125: 2 could be the guest's own code."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(CODE_FAILURE, f"{self.prog}: {message}\n")


def main(words: Sequence[str], command: Sequence[str]) -> int:
    """Run the command that `words` ask for; `command` is what follows their ``--``."""
    gc.enable()  # see `cli.script`
    args = _parser(words[0] if words else "").parse_args(words)
    args.command = [*getattr(args, "command", ()), *command]
    return int(args.func(args))


def _parser(asked: str) -> ArgumentParser:
    """The parser, complete for the command `asked` alone."""
    parser = _Parser(
        prog="pykvm",
        description="A hypervisor you can read: boots any kernel on /dev/kvm.",
        epilog="pykvm COMMAND --help tells more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pykvm {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, (module, gloss) in COMMANDS.items():
        if module is not None and name == asked:
            import importlib

            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=gloss)
    return parser
