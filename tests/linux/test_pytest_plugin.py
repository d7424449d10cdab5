"""The pytest plugin in the lab: what its machines do, and the examples of the documentation."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"


Run = Callable[[str], bytes]


@pytest.fixture
def run(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path: Path,
) -> Run:
    """Run a script in the lab, with $PYTEST for pytest, $CASES few, and a cache of its own. $MODULE
    and $FAULTY are modules, compiled here: that takes long in the lab. Returns what it prints."""
    kernel = debian_kernel("6.12-cloud")
    build = runpy.run_path(str(EXAMPLES / "test_module.py"))["build"]
    release = Path(kernel).name.removeprefix("vmlinuz-")
    variables = {
        "PYTEST_ADDOPTS": "",
        "CASES": "12",
        "XDG_CACHE_HOME": str(tmp_path),
        "MODULE": build(EXAMPLES / "module", tmp_path / "module", release),
        "FAULTY": build(HERE / "faulty", tmp_path / "faulty", release),
        "PYTEST": f"{sys.executable} -m pytest -q -rP -p no:cacheprovider --pykvm-kernel {kernel}",
    }

    def run(script: str) -> bytes:
        words = [f"{name}={value}" for name, value in variables.items()]
        done = in_lab(
            ["env", *words, "sh", "-c", f"({script}) 2>&1; echo code $?"], writable=[str(tmp_path)]
        )
        print(done.stdout.decode(errors="replace"))
        assert done.stdout.endswith(b"code 0\n")
        return done.stdout

    return run


def test_guests_do_what_they_are_asked(run: Run) -> None:
    assert b"15 passed, 1 xfailed" in run(f"$PYTEST {HERE}/agent_cases.py")


def test_every_test_has_its_own_machine_and_the_next_run_boots_none(
    run: Run, tmp_path: Path
) -> None:
    script = f"""
        $PYTEST {EXAMPLES} || exit 1
        stat -c '%n %i %Z' {tmp_path}/pykvm/guests/*/snapshot >{tmp_path}/made
        CASES=2 $PYTEST {EXAMPLES}/test_sysctl.py || exit 1
        stat -c '%n %i %Z' {tmp_path}/pykvm/guests/*/snapshot | cmp - {tmp_path}/made
    """
    output = run(script)
    assert re.findall(rb"\d+ passed", output) == [b"39 passed", b"3 passed"]
    assert b"Warning" not in output  # of a guest that is not kept
    assert re.search(rb"12 boots / 12 tests: .*", output)
