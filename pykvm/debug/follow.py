"""What ``pykvm boot`` does for --trace, --stats and --plot, before and after the run.

Reached from `cli_boot`, when one of them was given. Read `trace` for what happens meanwhile.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pykvm.console import create
from pykvm.debug.live import Live, shares_output
from pykvm.debug.trace import Tracer
from pykvm.debug.tracefile import check_name
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self, TextIO


def check(args: Any) -> None:
    """Refuse what can be refused before a kernel is looked for. Raises `ConfigError`."""
    if args.stats not in (None, "", "live"):
        raise ConfigError(f"--stats: {args.stats!r} is unknown; write --stats or --stats=live")
    if args.trace is not None:
        check_name(args.trace)
    if args.plot is not None:
        check_picture(args.plot)


def folders(args: Any) -> set[str]:
    """The folders in which files are written."""
    return {os.path.dirname(os.path.abspath(path)) for path in (args.trace, args.plot) if path}


class Follower:
    """The options, obeyed. Raises `ConfigError` when a file cannot be written."""

    def __init__(self, args: Any, hz: int) -> None:
        self._stats = args.stats is not None
        self._picture: TextIO | None = None
        self._path = trace = args.trace
        with ExitStack() as resources:
            if args.plot is not None:
                self._picture = resources.enter_context(open_picture(args.plot))
                if trace is None:  # a file without a name: nothing is left of it
                    trace = resources.enter_context(tempfile.TemporaryFile()).fileno()
                    self._path = f"/proc/self/fd/{trace}"
            self.tracer = resources.enter_context(Tracer(trace, stats=self._stats, hz=hz))
            self._resources = resources.pop_all()
        if args.stats == "live":
            self.tracer.live = Live(shared=shares_output(args.serial))

    def report(self) -> None:
        """After the run: the table on standard error, the picture, what is wrong with the trace."""
        if self.tracer.live is not None:
            self.tracer.live.clear()
        if self._stats:
            print(self.tracer.stats(), file=sys.stderr)
        self.tracer.close()
        if self.tracer.problem:
            print(f"pykvm: --trace: {self.tracer.problem}", file=sys.stderr)
        if self._picture is not None:
            from pykvm.debug.plot import plot
            from pykvm.debug.traceread import Trace

            self._picture.write(plot(Trace(self._path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()


def check_picture(path: str) -> None:
    """Raise `ConfigError` for a name that promises another kind of picture."""
    if not path.endswith(".svg"):
        raise ConfigError(f"--plot: {path!r} is no .svg; give it that ending")


def open_picture(path: str) -> TextIO:
    """The file that --plot names. Raises `ConfigError`."""
    check_picture(path)
    try:
        return open(create(path), "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--plot: {path}: {error.strerror}; name a file that can be written"
        ) from None
