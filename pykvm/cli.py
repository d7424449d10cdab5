"""The command line: finds the command, runs it, turns errors into one line and exit code 125.

Reached from the `pykvm` script. ``boot`` and ``restore`` must start fast and go their own way; the
other commands are found by `cli_parser`. Read `cli_boot`.
"""

from __future__ import annotations

import gc
import os
import sys

from pykvm.errors import PykvmError
from pykvm.lean import TYPE_CHECKING
from pykvm.outcome import CODE_FAILURE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Everything after the first "--" is the command's own `command`, whatever it looks like.
    at = words.index("--") if "--" in words else len(words)
    words, command = words[:at], words[at + 1 :]
    try:
        try:
            return _command(words, command)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a broken pipe is understood
    except PykvmError as error:
        complain(f"pykvm: {error}")
        return CODE_FAILURE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        return 141
    except OSError as error:
        _drop_output()
        file = f"{error.filename}: " if error.filename else ""
        complain(f"pykvm: {file}{error.strerror or error}")
        return CODE_FAILURE
    except Exception:  # an error of pykvm's own making is no verdict of the guest's
        import traceback

        complain(traceback.format_exc())
        return CODE_FAILURE


def complain(text: str) -> None:
    """Print `text` to standard error, if that can be: a full disk changes no exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - keep Python from trying again at exit


def _drop_output() -> None:
    """Keep Python from complaining at exit about output that cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _command(words: list[str], command: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words[:1] == ["boot"]:
        from pykvm.cli_boot import main as boot

        return boot(words[1:], command)
    if words[:1] == ["shell"]:
        from pykvm.cli_boot import main as shell

        return shell(words[1:], command, "shell")
    if words[:1] == ["restore"]:
        from pykvm.cli_restore import main as restore

        return restore(words[1:], command)
    from pykvm.cli_parser import main as other

    return other(words, command)


def _fill_closed_streams() -> None:
    """Open what of standard input, output and error is closed: else the next file would be it, and
    the guest's words would go to /dev/kvm."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:  # a prompt asks it
        sys.stdin = open(0)  # noqa: SIM115
    if sys.stderr is None:  # print() would take standard output for it
        sys.stderr = open(2, "w")  # noqa: SIM115


def script() -> NoReturn:
    """The `pykvm` script: as `main`, but quick to start and to end."""
    _fill_closed_streams()
    output: Any = sys.stdout
    if output is not None and output.encoding != "utf-8":
        output.reconfigure(errors="replace")  # the locale has no "…" and the like
    # Loading modules makes no garbage; the collector would look for some two dozen times.
    gc.disable()
    code = main()
    if sys.argv[1:2] in (["boot"], ["restore"]):
        # The machine is closed. Taking the interpreter apart would take as long as starting it.
        os._exit(code)
    sys.exit(code)
