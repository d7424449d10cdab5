"""What a guest's agent does, tested by the pytest plugin itself. Run in the lab by
test_pytest_plugin.py: this file's name keeps it from being collected anywhere else."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.agent import CommandError, CommandTimeoutError, GuestEndedError, GuestMachine, link

pytestmark = pytest.mark.pykvm(cpus=2, setup="echo prepared >/prepared")
MIB = 1 << 20
STAMP = r"\[ *\d+\.\d+\] "
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
    assert b"begun\n".startswith(caught.value.completed.stdout)  # an emulated machine is slow
    assert vm.run("pidof sleep").stdout == ""


def test_forks_of_a_fork_share_nothing_new(vm: GuestMachine) -> None:
    vm.run("echo mine >/file", check=True)
    with vm.fork() as one, vm.fork() as other:
        one.run("echo one >/file", check=True)
        assert other.run("cat /file").stdout == "mine\n"
    assert vm.run("cat /file").stdout == "mine\n"
    assert vm.run("sleep 2 & echo in the background").stdout == "in the background\n"


@pytest.mark.pykvm(cpus=1, net="user")
def test_guest_and_a_server_of_the_hosts_talk(vm: GuestMachine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        vm.run(f"echo hello | nc 10.0.2.2 {port} >/answer &", check=True)
        server.settimeout(SLACK_S)
        with server.accept()[0] as peer:
            assert peer.recv(100) == b"hello\n"
            peer.sendall(b"who is there?\n")
    assert vm.run("wait; until [ -s /answer ]; do sleep 0.1; done; cat /answer").stdout[:3] == "who"


@pytest.mark.pykvm(cpus=1, net="user")
def test_two_forks_on_one_cable_reach_each_other(vm: GuestMachine, tmp_path: Path) -> None:
    cable = f"socket={tmp_path}/cable"
    nets = [[f"{cable},ip=10.0.0.1/24"], [f"{cable},ip=10.0.0.2/24"]]
    with vm.fork(nets=nets[0]) as one, vm.fork(nets=nets[1]) as two:
        for fork, address in ((one, "10.0.0.1"), (two, "10.0.0.2")):
            fork.run(f"until ip address | grep {address}; do sleep 0.1; done", check=True)
        one.run("ping -c 1 -w 30 10.0.0.2", check=True)


def test_panic_is_told_with_the_consoles_last_lines(vm: GuestMachine, soon: float) -> None:
    with pytest.raises(GuestEndedError, match=r"(?s)kernel panic.*sysrq triggered crash"):
        vm.run("echo c >/proc/sysrq-trigger", timeout=SLACK_S)
    with pytest.raises(GuestEndedError, match="cannot be used any more"):
        vm.run("true")


def test_power_off_is_told(vm: GuestMachine, soon: float) -> None:
    with pytest.raises(GuestEndedError, match="the guest ended: power-off"):
        vm.run("poweroff -f", timeout=SLACK_S)


# ── a module that is at fault: faulty/, which test_pytest_plugin.py compiles ─────────────────────


def load(vm: GuestMachine, way: str, timeout: float = SLACK_S) -> None:
    vm.write_file("/faulty.ko", Path(os.environ["FAULTY"]).read_bytes())
    vm.run(["insmod", "/faulty.ko", f"way={way}"], timeout=timeout)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("warn", "WARNING: CPU: .* faulty_init"),
        ("oops", "BUG: kernel NULL pointer dereference, address: 0+8"),
        ("bug", "kernel BUG at .*/faulty.c:"),
        ("protection", "(Oops: )?general protection fault.* 0xdead000000000100"),
    ],
)
@pytest.mark.pykvm(allow=["WARNING", "BUG", "Oops", "protection"])
def test_fault_of_the_kernel_is_seen(vm: GuestMachine, way: str, said: str) -> None:
    load(vm, way)
    assert re.match(STAMP + said, vm.faults[0])


@pytest.mark.xfail(strict=True, reason="the kernel's warning fails it")
def test_fault_of_the_kernel_fails_a_test(vm: GuestMachine) -> None:
    load(vm, "warn")


def test_hang_is_told_with_its_place(vm: GuestMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "KILL_S", 3.0)
    with pytest.raises(GuestEndedError, match=r"(?s)does not answer.* at 0x.*interrupts off"):
        load(vm, "hang", timeout=8)


def test_next_test_is_not_harmed(vm: GuestMachine) -> None:
    assert vm.run("cat /prepared; uname").stdout == "prepared\nLinux\n"
    assert vm.faults == []
