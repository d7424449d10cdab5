"""A real gdb beside a Linux guest: what to run in the lab.

Reached from `tests/linux` and `tests/soak`. Read `gdbsession` beside it: what gdb does there.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

SESSION = Path(__file__).parents[2] / "linux" / "gdbsession.py"
# Started beside pykvm, whose end is the command's: gdb leaves the guest running.
SCRIPT = """
{boot} --gdb unix:{folder}/socket --wait-gdb & machine=$!
tries=0
until [ -S {folder}/socket ] || [ $tries = 600 ]; do sleep 0.1; tries=$((tries + 1)); done
gdb -q -nx -batch -ex 'set pagination off' -ex 'set confirm off' {symbols} \
    -ex 'python STEPS = {steps}' -ex 'target remote {folder}/socket' -x {session} \
    > {folder}/said 2>&1 || {{ cat {folder}/said >&2; kill $machine; }}
wait $machine
"""


def command(
    kernel: str, folder: Path, steps: int, seconds: int, cpus: int = 2, session: Path = SESSION
) -> list[str]:
    """Boots `kernel` for `seconds` at most, with a gdb that makes so many `steps`. What that says
    will be in the file `said` of `folder`, which the lab must be able to write to."""
    pykvm = [sys.executable, "-m", "pykvm"]
    symbols = folder / "symbols"
    subprocess.run([*pykvm, "kernel", "symbols", kernel, "-o", symbols], check=True)
    boot = shlex.join([*pykvm, "boot", kernel, "--timeout", str(seconds), "-c", str(cpus)])
    script = SCRIPT.format(boot=boot, folder=folder, symbols=symbols, steps=steps, session=session)
    return ["sh", "-c", script]
