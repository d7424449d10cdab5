"""Differential snapshots: the pages that changed since the base, and a guest that is whole."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from snapshots import (
    HOST_WRITES,
    PAGE,
    TIMEOUT_S,
    is_full,
    machine,
    memory_of,
    nonces,
    open_files,
    pages_in,
    passed,
    pykvm,
    take_chain,
)

from pykvm import guest_programs
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.snapshot.compact import compact
from pykvm.virtio.config.disk import DiskConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take_chain(tmp_path_factory.mktemp("taken"))


def test_a_differential_snapshot_has_the_pages_that_changed(saved: Path) -> None:
    assert is_full(saved / "full")
    assert pages_in(saved / "one") == 2
    assert pages_in(saved / "two") == 33
    assert memory_of(saved / "full")[HOST_WRITES:].startswith(b"zero")
    one, two = memory_of(saved / "one"), memory_of(saved / "two")
    assert one[HOST_WRITES:].startswith(b"once")
    assert one[HOST_WRITES + 8 * PAGE :].startswith(bytes(PAGE))  # zeros over what was there
    assert two[HOST_WRITES:].startswith(b"once")
    assert two[HOST_WRITES + PAGE :].startswith(b"again")
    assert (saved / "one" / "memory").stat().st_blocks * 512 < 16 * PAGE


@pytest.mark.parametrize("cpus", [1, 2])
def test_guest_restored_from_a_chain_goes_on_where_it_was(tmp_path: Path, cpus: int) -> None:
    with machine(f"rounds=5 ask=3 touch=4 cpus={int(cpus > 1)}", cpus=cpus) as vm:
        vm.snapshot(tmp_path / "full")
        first = vm.run(timeout=TIMEOUT_S)
        vm.snapshot(tmp_path / "one", base=tmp_path / "full")
        vm.snapshot(tmp_path / "two", base=tmp_path / "one")
    assert pages_in(tmp_path / "two") == 0
    for name in ("two", "one"):
        with Machine.restore(tmp_path / name) as restored:
            again = restored.run(timeout=TIMEOUT_S)
        assert passed(again)
        assert re.findall(rb"round (\d+)", again.console) == [b"4", b"5"]
        assert nonces(again) == nonces(first)


def test_every_snapshot_of_a_long_chain_is_the_memory_of_its_moment(tmp_path: Path) -> None:
    moments = []
    with machine("rounds=1000000 ticks=1 touch=3") as vm:
        for step in range(8):
            vm.run(timeout=0.05)
            vm.memory.write(HOST_WRITES + (step % 3) * PAGE, bytes([step]))
            base = {"base": tmp_path / f"{step - 1}"} if step else {}
            vm.snapshot(tmp_path / f"{step}", **base)
            moments.append(vm.memory.read(0, vm.memory.size))
            assert step == 0 or 0 < pages_in(tmp_path / f"{step}") < 64
    for step, moment in enumerate(moments):
        assert memory_of(tmp_path / f"{step}") == moment


def test_any_snapshot_that_a_machine_goes_on_from_can_be_the_base(saved: Path) -> None:
    with Machine.restore(saved / "two") as vm, tempfile.TemporaryDirectory() as scratch:
        vm.run(timeout=TIMEOUT_S)
        moment = vm.memory.read(0, vm.memory.size)
        for name in ("full", "one", "two"):
            vm.snapshot(Path(scratch) / name, base=saved / name)
            assert memory_of(Path(scratch) / name) == moment
        sizes = [pages_in(Path(scratch) / name) for name in ("full", "one", "two")]
    assert sizes[0] > sizes[2]
    assert sizes[1] > sizes[2]
    assert 0 < sizes[2] < 30  # its own run's: not those that were copied when it was restored


def test_full_snapshot_of_a_machine_from_a_chain_has_all(saved: Path, tmp_path: Path) -> None:
    with Machine.restore(saved / "two") as vm:
        vm.snapshot(tmp_path / "whole")
        assert memory_of(tmp_path / "whole") == vm.memory.read(0, vm.memory.size)


def test_fork_and_reset_of_a_machine_from_a_chain(saved: Path, tmp_path: Path) -> None:
    with Machine.restore(saved / "two") as vm:
        before = vm.memory.read(0, vm.memory.size)
        for _ in range(3):
            assert passed(vm.run(timeout=TIMEOUT_S))
            vm.memory.write(HOST_WRITES + 40 * PAGE, b"in a page that is mapped")
            vm.memory.write(HOST_WRITES, b"in one that is copied")
            vm.reset()
            assert vm.memory.read(0, vm.memory.size) == before
        beneath = os.fstat(vm.memory.file).st_ino
        with vm.fork() as fork:
            assert os.fstat(fork.memory.file).st_ino == beneath  # nothing was copied for it
            fork.snapshot(tmp_path / "of-the-fork", base=saved / "two")
            assert memory_of(tmp_path / "of-the-fork") == fork.memory.read(0, vm.memory.size)
            assert passed(fork.run(timeout=TIMEOUT_S))
        assert pages_in(tmp_path / "of-the-fork") == 1  # its generation id


def test_pages_that_go_back_to_what_they_were_are_found(saved: Path, tmp_path: Path) -> None:
    """A reset, or a balloon, undoes changes that a snapshot was taken with."""
    with Machine.restore(saved / "one") as vm:
        vm.memory.write(HOST_WRITES + 3 * PAGE, b"for a while")
        vm.snapshot(tmp_path / "while", base=saved / "one")
        vm.memory.discard(HOST_WRITES + 3 * PAGE, PAGE)
        vm.snapshot(tmp_path / "after", base=tmp_path / "while")
        assert memory_of(tmp_path / "after") == vm.memory.read(0, vm.memory.size)
        assert pages_in(tmp_path / "after") == 1


@pytest.mark.parametrize("is_restored", [False, True])
def test_what_devices_write_is_among_the_changes(tmp_path: Path, is_restored: bool) -> None:
    """KVM's dirty log would not have it: the disk is read by a C thread, the ring by Python."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"hello from the disk".ljust(64 * 512, b"\0"))
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=16 << 20,
        cmdline="count=20",
        transport="mmio",
        disks=(DiskConfig(str(disk), read_only=True),),
        rng=True,
    )
    with Machine(config) as vm:
        vm.snapshot(tmp_path / "full")
        if is_restored:
            vm = Machine.restore(tmp_path / "full")
        with vm:
            assert b"hello from the disk" not in vm.memory.read(0, vm.memory.size)
            assert b'it begins with "hello' in vm.run(timeout=TIMEOUT_S).console
            vm.snapshot(tmp_path / "diff", base=tmp_path / "full")
            moment = vm.memory.read(0, vm.memory.size)
    assert b"hello from the disk" in moment
    assert memory_of(tmp_path / "diff") == moment
    assert pages_in(tmp_path / "diff") < 64


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def test_command_line_takes_shows_and_compacts_them(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    boot = ["boot", guest_programs.path("snapshot"), "-m", "16M", "--append", "rounds=400"]
    boot += ["--snapshot-at", "console:^round 3 of", first, "--diff", first]
    done = pykvm(*boot, "--snapshot-at", "console:^round 20 of", second)
    assert done.returncode == 0
    assert done.stderr.count("saved to") == 2, done.stderr
    done = pykvm("restore", second, "--diff", "--snapshot-at", "console:^round 60 of", third)
    assert "round 3 of" not in done.stdout
    assert "saved to" in done.stderr
    assert [is_full(folder) for folder in (first, second, third)] == [True, False, False]
    shown = pykvm("snapshot", "show", third, "--verify").stdout
    assert re.search(rf"itself +{third}, differential: \d+ KiB changed", shown)
    assert re.search(rf"stands on +{second}, differential", shown)
    assert re.search(rf"stands on +{first}, full: \d+ KiB on disk", shown)
    assert "1 vCPU, 16 MiB of memory" in shown
    assert pykvm("snapshot", "compact", third).returncode == 0
    shutil.rmtree(first)
    assert "is not there any more" in pykvm("restore", second).stderr
    done = pykvm("restore", third)
    assert done.returncode == 0
    assert "round 60 of" not in done.stdout
    assert done.stdout.endswith("ok: all rounds played\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["boot", "KERNEL", "--diff", "/nowhere"], "--diff: nothing saves to /nowhere before"),
        (["restore", "/nowhere", "--diff"], "/nowhere"),
        (["snapshot", "show", "/nowhere"], "/nowhere"),
        (["snapshot", "compact", "/nowhere"], "/nowhere"),
        (["snapshot"], "show|compact"),
    ],
)
def test_what_cannot_be_done_is_told(words: list[str], complaint: str) -> None:
    kernel = guest_programs.path("snapshot")
    done = pykvm(*(kernel if word == "KERNEL" else word for word in words))
    assert done.returncode == 125
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_open(saved: Path, tmp_path: Path) -> None:
    def use() -> None:
        with Machine.restore(saved / "two") as vm:
            vm.run(timeout=TIMEOUT_S)
            vm.snapshot(tmp_path / "snap", base=saved / "two")
            vm.reset()
            vm.fork().close()
        compact(tmp_path / "snap")
        with pytest.raises(ConfigError):
            Machine.restore(tmp_path)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memory\n")

    use()
    before = open_files(), mappings()
    for _ in range(5):
        use()
    assert (open_files(), mappings()) == before
