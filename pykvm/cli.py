"""The command line: finds the command, runs it, turns errors into one line and exit code 125.

Reached from the `pykvm` script. Each command is a module with `add_parser(subparsers)`; only the
one that was asked for is imported, because ``pykvm boot`` must start fast. Read `cli_boot`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from pykvm.errors import PykvmError
from pykvm.outcome import CODE_FAILURE

COMMANDS = {
    "boot": ("pykvm.cli_boot", "boot a kernel and give back its verdict"),
    "kernel": ("pykvm.cli_kernel", "fetch, build and list kernels"),
    "doctor": ("pykvm.cli_doctor", "find out what this host's KVM can do"),
    "lab": ("pykvm.lab", "run a command inside an emulated machine with a working KVM"),
}


class _Parser(ArgumentParser):
    """An ArgumentParser whose errors leave with 125: 2 could be the guest's own code."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(CODE_FAILURE, f"{self.prog}: {message}\n")


def _parser(command: str) -> ArgumentParser:
    """The parser, complete for `command` alone."""
    parser = _Parser(
        prog="pykvm",
        description="A hypervisor you can read: boots any kernel on /dev/kvm.",
        epilog="pykvm COMMAND --help tells more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, (module, gloss) in COMMANDS.items():
        if name == command:
            import importlib

            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=gloss)
    return parser


def _version() -> str:
    from pykvm import __version__

    return f"pykvm {__version__}"


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Everything after the first "--" is the command's own `command`, whatever it looks like.
    words, rest = _split(words)
    # Options before the command are --help and --version alone, which need no command's parser.
    parser = _parser(words[0] if words else "")
    try:
        args = parser.parse_args(words)
        args.words, args.command = words, [*getattr(args, "command", ()), *rest]
        return int(args.func(args))
    except PykvmError as error:
        print(f"pykvm: {error}", file=sys.stderr)
        return CODE_FAILURE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        import os

        # Whoever read our output has gone; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


if __name__ == "__main__":
    sys.exit(main())
