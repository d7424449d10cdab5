"""A hundred tests with machines of their own, beside a hundred boots; a hundred megabytes; runs of
tests that end badly."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from pykvm.boot.kernels import fetch
from pykvm.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
CASES = 100
BAR = 20  # boots, in the time of as many tests
LIMIT_S = 1800
OUTPUT = """
import hashlib, sys
from pykvm.agent import GuestMachine

with GuestMachine.boot(sys.argv[1], add=["/bin/busybox"]) as vm:
    script = "busybox head -c 104857600 /dev/urandom | busybox tee /copy; busybox md5sum /copy >&2"
    done = vm.run(["busybox", "sh", "-c", script], text=False, timeout=1200)
    assert len(done.stdout) == 100 << 20
    assert hashlib.md5(done.stdout).hexdigest().encode() == done.stderr.split()[0]
    data = vm.read_file("/copy", timeout=1200)
    assert data == done.stdout
    vm.write_file("/copy", data[::-1], timeout=1200)
    assert vm.read_file("/copy", timeout=1200) == data[::-1]
print("all of it")
"""


def test_a_hundred_machines_are_faster_than_a_hundred_boots_by_far(lab: Lab) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider"]
    command += ["--pykvm-no-cache", "--pykvm-kernel", str(fetch("6.12-cloud").image)]
    command += [str(ROOT / "docs" / "examples" / "test_sysctl.py")]
    done = lab.run(["env", "PYTEST_ADDOPTS=", f"CASES={CASES}", *command], timeout=LIMIT_S)
    assert f"{CASES + 1} passed".encode() in done.stdout, done
    figure = re.search(rb"100 boots / 100 tests: ([0-9.]+).*", done.stdout)
    assert figure, done
    print(figure[0].decode())
    assert float(figure[1]) >= BAR


def test_a_hundred_megabytes_pass_whole_each_way(lab: Lab) -> None:
    kernel = str(fetch("6.12-cloud").image)
    done = lab.run([sys.executable, "-c", OUTPUT, kernel], timeout=LIMIT_S)
    assert done.stdout == b"all of it\n", done


def test_workers_boot_once_and_bad_ends_leave_nothing(lab: Lab, tmp_path: Path) -> None:
    script = ROOT / "tests" / "soak" / "plugin_endings.py"
    environment = ["env", "PYTEST_ADDOPTS=", f"XDG_CACHE_HOME={tmp_path}"]
    command = [*environment, sys.executable, str(script), str(fetch("6.12-cloud").image)]
    done = lab.run([*command, str(tmp_path)], timeout=LIMIT_S, writable=[str(tmp_path)])
    assert done.stdout.splitlines() == [
        b"boots: 1",
        b"nothing is left: two workers boot",
        b"nothing is left: a worker is killed",
        b"nothing is left: interrupted",
        b"nothing is left: killed",
    ], done
    guests = list((tmp_path / "pykvm" / "guests").iterdir())
    assert len(guests) == 2  # the tests' own has a network, `machine` has none
    assert all(sorted(os.listdir(guest)) == ["boot-seconds", "snapshot"] for guest in guests)
