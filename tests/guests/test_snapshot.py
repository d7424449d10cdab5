"""A machine saved, restored, forked and reset: it goes on where it was, and is not booted anew."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from snapshots import TIMEOUT_S, nonces, open_files, passed

from pykvm import guest_programs
from pykvm._core import ffi
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError, PykvmError
from pykvm.machine import Machine
from pykvm.outcome import Outcome, Reason
from pykvm.virtio.config.disk import DiskConfig

MEMORY = 16 << 20

Boot = Callable[..., Machine]


@pytest.fixture
def boot() -> Iterator[Boot]:
    """``boot("rounds=5 ask=2", cpus=2)``: a machine with the guest that knows what it is."""
    machines = []

    def make(cmdline: str, **options: object) -> Machine:
        kernel = guest_programs.path("snapshot")
        options = {"memory": MEMORY, **options}
        machines.append(Machine(MachineConfig(kernel=kernel, cmdline=cmdline, **options)))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def rounds(outcome: Outcome) -> list[int]:
    return [int(number) for number in re.findall(rb"round (\d+)", outcome.console)]


@pytest.mark.parametrize("cpus", [1, 2])
def test_restored_guest_goes_on_where_it_was(boot: Boot, tmp_path: Path, cpus: int) -> None:
    vm = boot(f"rounds=5 ask=2 touch=4 cpus={int(cpus > 1)}", cpus=cpus)
    vm.on_snapshot_request = lambda: vm.snapshot(tmp_path / "snap")
    outcome = vm.run(timeout=TIMEOUT_S)
    assert passed(outcome)
    assert rounds(outcome) == [1, 2, 3, 4, 5]
    assert b"generation 0" in outcome.console
    for _ in range(2):
        with Machine.restore(tmp_path / "snap") as restored:
            again = restored.run(timeout=TIMEOUT_S)
        assert passed(again)
        assert rounds(again) == [3, 4, 5]
        assert nonces(again) == nonces(outcome)
        assert b"generation 1" in again.console


@pytest.mark.parametrize("cpus", [1, 2])
def test_forks_and_their_origin_go_their_own_ways(boot: Boot, cpus: int) -> None:
    vm = boot(f"rounds=4 ask=2 touch=4 cpus={int(cpus > 1)}", cpus=cpus)
    forks: list[Machine] = []
    vm.on_snapshot_request = lambda: forks.extend(vm.fork() for _ in range(3))
    outcome = vm.run(timeout=TIMEOUT_S)
    assert passed(outcome)
    assert b"generation 0" in outcome.console
    for fork in forks:
        with fork:
            again = fork.run(timeout=TIMEOUT_S)
        assert passed(again)
        assert rounds(again) == [3, 4]
        assert nonces(again) == nonces(outcome)
        assert b"generation 1" in again.console


def test_copies_have_the_memory_types_of_their_origin(boot: Boot, tmp_path: Path) -> None:
    vm = boot("rounds=2 ask=1", cpus=2)
    types = {0x200: 0xC000_0000, 0x201: 0xFF_C000_0800, 0x250: 0x0606 << 48, 0x2FF: 0xC06}
    for vcpu in vm.vcpus:
        assert vcpu.get_msrs([0x2FF]) == {0x2FF: 0x806}  # as firmware would leave it
        if refused := vcpu.set_msrs(types):
            pytest.skip(f"this KVM does not take the MTRRs {refused}")
    vm.snapshot(tmp_path / "snap")
    with vm.fork() as fork, Machine.restore(tmp_path / "snap") as restored:
        restored.vcpus[1].set_msrs({0x250: 0})
        restored.reset()
        for machine in (vm, fork, restored):
            for vcpu in machine.vcpus:
                assert vcpu.get_msrs(types) == types  # KVM's list lacks them


def test_prefaulted_memory_is_mapped_and_not_copied(boot: Boot, tmp_path: Path) -> None:
    boot("rounds=2").snapshot(tmp_path / "snap")
    with Machine.restore(tmp_path / "snap", prefault=True) as vm:
        start = f"{int(ffi.cast('uintptr_t', vm.memory.handle.hva)):x}-"
        with open("/proc/self/smaps") as lines:
            assert any(line.startswith(start) for line in lines)
            rss = next(line for line in lines if line.startswith("Rss:"))
        assert int(rss.split()[1]) << 10 == MEMORY
        assert sum(size for _, size in vm.memory.changes()) <= 4096  # its generation id


def test_fork_of_a_fork_is_of_the_next_generation(boot: Boot) -> None:
    vm = boot("rounds=2 ask=1")
    vm.on_snapshot_request = vm.stop
    vm.run(timeout=TIMEOUT_S)
    with vm.fork() as child, child.fork() as grandchild:
        assert b"generation 2" in grandchild.run(timeout=TIMEOUT_S).console
        assert b"generation 1" in child.run(timeout=TIMEOUT_S).console


CHANGES: dict[str, Callable[[Machine], object]] = {
    "run": lambda vm: vm.run(timeout=TIMEOUT_S),
    "a general register": lambda vm: vm.vcpus[0].write_register("rax", 0x1234),
    "an MSR": lambda vm: vm.vcpus[0].set_msrs({0x174: 8}),
    "memory": lambda vm: vm.memory.write(0x8000, b"changed"),
    "a view of memory": lambda vm: vm.memory.view(0x8000, 1).__setitem__(0, 1),
    "a device": lambda vm: vm.power.press_power_button(),
    "a device in C": lambda vm: vm.serial.write(7, 1, 0x5A),
    "an interrupt line": lambda vm: vm.vm.irq_line(5, 1),
    "a device more": lambda vm: vm.pio(0x510)(lambda offset, size, value: 0),
    "the clock": lambda vm: vm.vm.set_clock(vm.vm.get_clock()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_machine_that_has_changed_is_captured_anew_and_another_is_not(
    boot: Boot, what: str
) -> None:
    vm = boot("rounds=3 ask=1")
    vm.on_snapshot_request = vm.stop
    vm.run(timeout=TIMEOUT_S)
    vm.fork().close()
    first = vm.template
    vm.fork().close()
    assert vm.template is first
    CHANGES[what](vm)
    vm.fork().close()
    assert vm.template is not first


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_machine_with_virtio_devices_at_rest_is_not_captured_anew(
    tmp_path: Path, transport: str
) -> None:
    (tmp_path / "disk").write_bytes(bytes(16 * 512))
    disk = DiskConfig(str(tmp_path / "disk"), read_only=True)
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=MEMORY,
        cmdline=f"pci={int(transport == 'pci')}",
        transport=transport,
        disks=(disk,),
        rng=True,
    )
    with Machine(config) as vm:
        vm.run(timeout=TIMEOUT_S)
        vm.fork().close()
        first = vm.template
        for _ in range(8):
            vm.fork().close()
            assert vm.template is first
        vm.memory.write(0x8000, b"changed")
        vm.fork().close()
        assert vm.template is not first


def test_forks_of_one_pause_share_a_template_and_later_ones_do_not(boot: Boot) -> None:
    vm = boot("rounds=3 ask=1")
    templates = []

    def ask() -> None:
        for _ in range(2):
            vm.fork().close()
            templates.append(vm.template)

    vm.on_snapshot_request = ask
    vm.run(timeout=TIMEOUT_S)
    vm.fork().close()
    first, second = templates
    assert first is second
    assert vm.template is not first


@pytest.mark.parametrize("cpus", [1, 2])
def test_reset_takes_a_machine_back_again_and_again(boot: Boot, cpus: int) -> None:
    vm = boot(f"rounds=4 ask=2 touch=4 cpus={int(cpus > 1)}", cpus=cpus)
    vm.on_snapshot_request = vm.stop
    first = vm.run(timeout=TIMEOUT_S)
    with vm.fork() as fork:
        for _ in range(5):
            again = fork.run(timeout=TIMEOUT_S)
            assert passed(again)
            assert rounds(again) == [3, 4]
            assert nonces(again) == nonces(first)
            fork.reset()


def test_origin_of_a_fork_can_be_reset_too(boot: Boot) -> None:
    vm = boot("rounds=3 ask=1")
    vm.on_snapshot_request = vm.stop
    vm.run(timeout=TIMEOUT_S)
    vm.fork().close()
    assert rounds(vm.run(timeout=TIMEOUT_S)) == [1, 2, 3]
    vm.reset()
    assert rounds(vm.run(timeout=TIMEOUT_S)) == [2, 3]


def test_reset_undoes_what_host_and_guest_wrote(boot: Boot) -> None:
    vm = boot("rounds=4 ask=2 touch=8")
    vm.on_snapshot_request = vm.stop
    vm.run(timeout=TIMEOUT_S)
    with vm.fork() as fork:
        before = fork.memory.read(0, MEMORY)
        fork.memory.write(0x90_0000, b"written by the host")
        fork.memory.view(0xA0_0000, 4)[:] = b"view"
        fork.memory.write(0xB0_0000, bytes(range(256)) * (2 << 12))  # what pwrite would take
        fork.run(timeout=TIMEOUT_S)
        assert fork.memory.read(0, MEMORY) != before
        fork.reset()
        assert fork.memory.read(0, MEMORY) == before


def test_reset_without_anything_to_go_back_to_is_refused(boot: Boot) -> None:
    with pytest.raises(PykvmError, match="fork the machine"):
        boot("rounds=1").reset()


def test_bytes_that_were_taken_while_the_machine_rested_are_written_later(boot: Boot) -> None:
    vm = boot("rounds=1000000 ticks=1")

    def take() -> None:  # as `at_rest` does
        size = len(vm.console_log)
        while len(vm.console_log) == size:
            vm.empty_console()

    vm.requests.add(take)
    assert vm.run(timeout=1).reason is Reason.TIMEOUT


def test_snapshot_of_a_running_machine_from_another_thread(boot: Boot, tmp_path: Path) -> None:
    vm = boot("rounds=1000000 ticks=1")
    thread = threading.Thread(target=vm.run, kwargs={"timeout": TIMEOUT_S})
    thread.start()
    try:
        while b"round 3 " not in vm.console_log:
            threading.Event().wait(0.01)
        vm.snapshot(tmp_path / "snap")
    finally:
        vm.stop()
        thread.join()
    with Machine.restore(tmp_path / "snap") as restored:
        again = restored.run(timeout=0.2)
    first = re.findall(rb"round (\d+) of", again.console)[0]
    assert int(first) >= 3
    assert b"round %s of" % first in vm.console_log  # the origin went through it too, later


def test_memory_of_many_pieces_is_found_whole(boot: Boot, tmp_path: Path) -> None:
    vm = boot("rounds=1")
    for mib in range(2, MEMORY >> 20):
        vm.memory.write(mib << 20, b"something")
    before = vm.memory.read(0, MEMORY)
    vm.snapshot(tmp_path / "snap")
    with Machine.restore(tmp_path / "snap", verify=True) as restored:
        assert restored.memory.read(1 << 20, MEMORY - (1 << 20)) == before[1 << 20 :]


def test_snapshot_of_a_machine_before_its_first_run(boot: Boot, tmp_path: Path) -> None:
    boot("rounds=2").snapshot(tmp_path / "snap")
    with Machine.restore(tmp_path / "snap") as restored:
        assert rounds(restored.run(timeout=TIMEOUT_S)) == [1, 2]


def test_snapshot_of_a_restored_machine_is_as_good(boot: Boot, tmp_path: Path) -> None:
    vm = boot("rounds=3 ask=1")
    vm.on_snapshot_request = vm.stop
    first = vm.run(timeout=TIMEOUT_S)
    vm.snapshot(tmp_path / "one")
    with Machine.restore(tmp_path / "one") as restored:
        restored.snapshot(tmp_path / "two")
    with Machine.restore(tmp_path / "two") as again:
        outcome = again.run(timeout=TIMEOUT_S)
    assert passed(outcome)
    assert nonces(outcome) == nonces(first)
    assert b"generation 2" in outcome.console


def test_device_of_the_users_gets_its_state_when_it_is_attached(boot: Boot, tmp_path: Path) -> None:
    from pykvm.devices.base import Device

    class Counter(Device):
        count = 0

        def state(self) -> bytes:
            return bytes([self.count])

        def restore(self, state: bytes) -> None:
            self.count = state[0]

    vm = boot("rounds=1")
    counter = Counter()
    counter.count = 7
    vm.pio(0x520)(counter)
    vm.snapshot(tmp_path / "snap")
    with Machine.restore(tmp_path / "snap") as restored:
        with pytest.raises(ConfigError, match="port/0x520"):
            restored.run(timeout=TIMEOUT_S)
        mine = Counter()
        restored.pio(0x520)(mine)
        assert mine.count == 7
        assert passed(restored.run(timeout=TIMEOUT_S))


def test_nothing_is_left_open(boot: Boot, tmp_path: Path, threads: Callable[..., int]) -> None:
    vm = boot("rounds=2 ask=1")
    vm.on_snapshot_request = vm.stop
    vm.run(timeout=TIMEOUT_S)
    vm.snapshot(tmp_path / "snap")

    def use() -> None:
        with Machine.restore(tmp_path / "snap") as restored, restored.fork() as fork:
            fork.run(timeout=TIMEOUT_S)
            fork.reset()
            fork.snapshot(tmp_path / "other")

    use()
    files, before = open_files(), threads()
    for _ in range(5):
        use()
    assert open_files() == files
    assert threads(before) <= before
    assert sorted(os.listdir(tmp_path)) == ["other", "snap"]
