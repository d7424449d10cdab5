"""The pytest plugin in the lab: what its machines do, and the example of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"


def test_every_test_has_its_own_machine(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider"]
    command += ["--pykvm-kernel", debian_kernel("6.12-cloud")]
    command += [str(HERE / "agent_cases.py"), str(EXAMPLES)]
    done = in_lab(["env", "PYTEST_ADDOPTS=", "CASES=12", *command])
    assert b"25 passed" in done.stdout, done
    figure = re.search(rb"12 boots / 12 tests: .*", done.stdout)
    assert figure, done
    print(figure[0].decode())
