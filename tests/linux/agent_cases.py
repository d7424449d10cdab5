"""What a guest's agent does, tested by the pytest plugin itself. Run in the lab by
test_pytest_plugin.py: this file's name keeps it from being collected anywhere else."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator

import pytest

from pykvm.agent import CommandError, CommandTimeoutError, GuestEndedError, GuestMachine

pytestmark = pytest.mark.pykvm(cpus=2, setup="echo prepared >/prepared")
MIB = 1 << 20
SLACK_S = 120.0  # an emulated machine is slow


@pytest.fixture
def soon() -> Iterator[float]:
    began = time.monotonic()
    yield SLACK_S
    assert time.monotonic() - began < SLACK_S


def test_code_streams_folder_and_environment(vm: GuestMachine) -> None:
    script = "nproc; pwd; echo $NAME $PATH; cat; echo err >&2; exit 7"
    done = vm.run(script, input="in", cwd="/sys", env={"NAME": "a b", "PATH": "/x:/bin"})
    assert done == (7, "2\n/sys\na b /x:/bin\nin", "err\n")
    assert vm.run(["no-such-program"]).code == 127
    with pytest.raises(CommandError, match=r"'exit 3' ended with code 3"):
        vm.run("exit 3", check=True)
    assert vm.run("cat /prepared; date +%s").stdout.startswith("prepared\n")


def test_clock_is_the_hosts(vm: GuestMachine) -> None:
    assert abs(int(vm.run("date +%s").stdout) - time.time()) < SLACK_S


def test_megabytes_both_ways_are_whole(vm: GuestMachine) -> None:
    data = os.urandom(4 * MIB)
    vm.write_file("/tmp-file", data)
    done = vm.run("md5sum; cat /tmp-file", input=data, text=False, timeout=SLACK_S)
    digest = hashlib.md5(data).hexdigest().encode()
    assert done.stdout.split(b"\n", 1) == [digest + b"  -", data]
    assert vm.read_file("/tmp-file") == data
    with pytest.raises(FileNotFoundError, match="/no/file"):
        vm.read_file("/no/file")


def test_command_out_of_time_leaves_a_machine_to_use(vm: GuestMachine, soon: float) -> None:
    with pytest.raises(CommandTimeoutError) as caught:
        vm.run("echo begun; sleep 1000", timeout=2)
    assert caught.value.completed.stdout == b"begun\n"
    assert vm.run("pidof sleep").stdout == ""


def test_forks_of_a_fork_share_nothing_new(vm: GuestMachine) -> None:
    vm.run("echo mine >/file", check=True)
    with vm.fork() as one, vm.fork() as other:
        one.run("echo one >/file", check=True)
        assert other.run("cat /file").stdout == "mine\n"
    assert vm.run("cat /file").stdout == "mine\n"
    assert vm.run("sleep 2 & echo in the background").stdout == "in the background\n"


def test_panic_is_told_with_the_consoles_last_lines(vm: GuestMachine, soon: float) -> None:
    with pytest.raises(GuestEndedError, match=r"(?s)kernel panic.*sysrq triggered crash"):
        vm.run("echo c >/proc/sysrq-trigger", timeout=SLACK_S)
    with pytest.raises(GuestEndedError, match="cannot be used any more"):
        vm.run("true")


def test_power_off_is_told(vm: GuestMachine, soon: float) -> None:
    with pytest.raises(GuestEndedError, match="the guest ended: power-off"):
        vm.run("poweroff -f", timeout=SLACK_S)
