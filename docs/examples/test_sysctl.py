"""A kernel setting in many cases, each in a machine of its own. See docs/pytest.md; run it with

pykvm lab -- pytest -rP docs/examples/test_sysctl.py
"""

from __future__ import annotations

import os
import time

import pytest

from pykvm.agent import GuestMachine

CASES = int(os.environ.get("CASES", "100"))
VALUES = range(1000, 1000 + CASES)
SETTING = "/proc/sys/kernel/pid_max"

started: dict[str, float] = {}


@pytest.fixture(scope="module", autouse=True)
def clock(machine: GuestMachine) -> None:
    """Time what follows the boot."""
    started["tests"] = time.monotonic()


@pytest.mark.parametrize("value", VALUES)
def test_the_setting_reads_back(vm: GuestMachine, value: int) -> None:
    done = vm.run(f"cat {SETTING}; echo {value} > {SETTING}; cat {SETTING}", check=True)
    before, after = map(int, done.stdout.split())
    assert before not in VALUES  # nobody was here before
    assert after == value


def test_it_was_faster_than_a_boot_for_each(machine: GuestMachine) -> None:
    took = time.monotonic() - started["tests"]
    ratio = CASES * machine.boot_seconds / took
    print(
        f"{CASES} boots / {CASES} tests: {ratio:.1f} "
        f"({machine.boot_seconds:.2f} s a boot, {took / CASES:.3f} s a test)"
    )
    assert ratio > 1
