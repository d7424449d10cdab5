"""The pytest plugin in the lab: what its machines do, and the examples of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"


def test_every_test_has_its_own_machine_and_the_next_run_boots_none(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path: Path,
) -> None:
    pytest = f"{sys.executable} -m pytest -q -rP -p no:cacheprovider"
    pytest += f" --pykvm-kernel {debian_kernel('6.12-cloud')}"
    script = f"""
        export PYTEST_ADDOPTS= CASES=12 XDG_CACHE_HOME={tmp_path}
        {pytest} {HERE}/agent_cases.py {EXAMPLES} || exit
        stat -c '%n %i %Z' {tmp_path}/pykvm/guests/*/snapshot >{tmp_path}/made
        CASES=2 {pytest} {EXAMPLES}/test_sysctl.py || exit
        stat -c '%n %i %Z' {tmp_path}/pykvm/guests/*/snapshot | cmp - {tmp_path}/made
    """
    done = in_lab(["sh", "-c", script], writable=[str(tmp_path)])
    assert re.findall(rb"\d+ passed", done.stdout) == [b"25 passed", b"3 passed"], done
    assert b"Warning" not in done.stdout, done  # of a guest that is not kept
    figure = re.search(rb"12 boots / 12 tests: .*", done.stdout)
    assert figure, done
    print(figure[0].decode())
