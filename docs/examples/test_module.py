"""A kernel module, compiled for the guests' kernel; each test loads it into a machine of its own.
See docs/pytest.md; run it with

pykvm lab -- pytest -rP docs/examples/test_module.py

The module is module/tally.c: /dev/tally adds up the numbers that are written to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.agent import GuestMachine

SOURCE = Path(__file__).parent / "module"
CASES = int(os.environ.get("CASES", "100"))

Load = Callable[..., GuestMachine]


def build(source: Path, folder: Path, release: str) -> Path:
    """Compile the module in `source` for the kernel of this `release`, in `folder`."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    command = [sys.executable, "-m", "pykvm", "kernel", "headers", release]
    headers = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    make = ["make", "-C", headers, f"M={folder}", "modules"]
    built = subprocess.run(make, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (module,) = folder.glob("*.ko")
    subprocess.run(["strip", "--strip-debug", module], check=True)
    return module


@pytest.fixture(scope="session")
def module(machine: GuestMachine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The module. $MODULE names one that was built before."""
    with machine.fork() as one:
        release = one.run("uname -r", check=True).stdout.strip()
    path = os.environ.get("MODULE") or build(SOURCE, tmp_path_factory.mktemp("module"), release)
    return Path(path).read_bytes()


@pytest.fixture
def load(vm: GuestMachine, module: bytes) -> Load:
    """``load("limit=5")``: the machine, in which the module is loaded with these parameters."""

    def load(*parameters: str) -> GuestMachine:
        vm.write_file("/tally.ko", module)
        vm.run(["insmod", "/tally.ko", *parameters], check=True)
        return vm

    return load


@pytest.mark.parametrize("limit", range(1, CASES + 1))
def test_the_sum_goes_to_the_limit_and_no_further(load: Load, limit: int) -> None:
    vm = load(f"limit={limit}")
    done = vm.run(f"echo {limit} >/dev/tally; echo 1 >/dev/tally; cat /dev/tally")
    assert done.stderr == "sh: write error: Disk quota exceeded\n"
    assert done.stdout == f"{limit}\n"


@pytest.mark.parametrize("text", ["", "x", "-1", "4294967296", "1 2"])
def test_what_is_no_number_is_refused_and_changes_nothing(load: Load, text: str) -> None:
    vm = load()
    assert vm.run(f"echo 40 >/dev/tally; echo '{text}' >/dev/tally").code == 1
    assert vm.read_file("/dev/tally") == b"40\n"


@pytest.mark.parametrize("parameter", ["limit=-1", "limit=many"])
def test_wrong_parameter_is_refused(vm: GuestMachine, module: bytes, parameter: str) -> None:
    vm.write_file("/tally.ko", module)
    assert vm.run(["insmod", "/tally.ko", parameter]).code != 0
    assert vm.run("ls /dev/tally").code != 0


def test_module_in_use_stays(load: Load) -> None:
    vm = load()
    assert vm.run("exec 3</dev/tally; rmmod tally; exec 3<&-; rmmod tally").stderr.count("\n") == 1
    assert vm.run("ls /dev/tally").code != 0


# A warning of the kernel's fails a test, unless it is expected.
@pytest.mark.pykvm(allow="WARNING: .*tally_write")
def test_nothing_is_added_with_a_warning(load: Load) -> None:
    vm = load()
    vm.run("echo 0 >/dev/tally", check=True)
    assert "tally: somebody adds nothing" in vm.run("dmesg").stdout
    (fault,) = vm.faults
    assert "tally_write" in fault
