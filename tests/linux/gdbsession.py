"""What gdb is told to do with a Linux guest: gdb runs this file, inside itself.

Reached from `gdbinlab`, which sets STEPS; tests read what is printed. Read `gdbsteps` and
`pykvm.debug.gdbstub` beside it.
"""

import sys
from pathlib import Path

import gdb  # type: ignore[import-not-found]

sys.path.append(str(Path(__file__).parents[1] / "unit" / "debug"))

from gdbsteps import steps  # gdb has no pytest to set the path


def execute(command: str) -> str:
    """What gdb says to a command."""
    said = gdb.execute(command, to_string=True)
    print(f"({command}) {said}", flush=True)
    return str(said)


execute("break start_kernel")
execute("continue")
execute("backtrace 2")
execute("delete")
execute("set scheduler-locking step")
steps(STEPS)  # type: ignore[name-defined]  # noqa: F821
execute("break __x64_sys_write")
execute("continue")
execute("backtrace 3")
execute("info threads")
execute("delete")
execute("watch *(unsigned long *)&jiffies")
execute("continue")
execute("delete")
execute("detach")
