"""``pykvm explain``: reads a trace that ``pykvm boot --trace`` wrote.

Reached from `cli_parser`. Read `debug.explain` for the text, `debug.plot` for the picture.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction


def add_parser(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command to ``pykvm``'s parser."""
    parser = subparsers.add_parser(
        "explain",
        help="tell where the time of a traced boot went",
        description="Tell where the time of a boot went that 'pykvm boot --trace TRACE' recorded: "
        "its phases, its most expensive exits, what would remove them.",
        allow_abbrev=False,
    )
    parser.add_argument("trace", metavar="TRACE", help="a .json or .csv of 'pykvm boot --trace'")
    parser.add_argument(
        "--symbols",
        metavar="FILE",
        help="an ELF image (vmlinux) with symbols, a kernel with kallsyms, or a System.map "
        "(default: the kernel itself, or what is beside it)",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="draw its timeline and the guest's memory, too"
    )
    parser.set_defaults(func=run)


def run(args: Namespace) -> int:
    """Carry out ``pykvm explain``; returns the exit code."""
    from pykvm.debug import symbols
    from pykvm.debug.explain import explain
    from pykvm.debug.traceread import Trace

    trace = Trace(args.trace)
    kernel = str(trace.machine.get("kernel", ""))
    found = symbols.load(args.symbols) if args.symbols else symbols.beside(kernel)
    if args.plot is not None:
        from pykvm.debug.follow import open_picture
        from pykvm.debug.plot import plot

        with open_picture(args.plot) as picture:
            picture.write(plot(trace))
    print(explain(trace, found))
    return 0
