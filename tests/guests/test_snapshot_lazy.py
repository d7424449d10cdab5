"""Memory that is read when the guest first needs it: the same guest, or a clear end."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from snapshots import (
    HOST_WRITES,
    PAGE,
    TIMEOUT_S,
    content,
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

from pykvm._core import lib
from pykvm.errors import ConfigError, HostError
from pykvm.lean import TYPE_CHECKING
from pykvm.machine import Machine
from pykvm.snapshot import format, lazy
from pykvm.snapshot.load import load

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = 64 << 20
PIECE = 1 << 20
FAR = 48 << 20  # gpa in a piece that the guest never touches


@pytest.fixture(scope="module")
def snap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lazy") / "snap"
    with machine("rounds=4 ask=2 touch=4 cpus=1", cpus=2, memory=MEMORY) as vm:
        vm.run(timeout=TIMEOUT_S)
        vm.memory.write(FAR, b"far away")
        vm.snapshot(folder)
    return folder


@pytest.fixture
def copied(snap: Path, tmp_path: Path) -> Path:
    """A copy, whose stamp is another and whose memory may be spoilt."""
    folder = Path(shutil.copytree(snap, tmp_path / "copied"))
    (folder / format.MEMORY).chmod(0o600)
    return folder


def loaded(vm: Machine) -> int:
    assert vm.memory.loader is not None
    return vm.memory.loader.pieces


def spoil(folder: Path, offset: int) -> None:
    with open(folder / format.MEMORY, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_the_guest_goes_on_and_what_it_does_not_need_is_not_read(snap: Path) -> None:
    with Machine.restore(snap, lazy=True) as vm, Machine.restore(snap) as other:
        outcome = vm.run(timeout=TIMEOUT_S)
        assert passed(outcome)
        assert nonces(outcome) == nonces(other.run(timeout=TIMEOUT_S))
        before = loaded(vm)
        assert 0 < before < 16
        assert vm.memory.read(FAR, 8) == b"far away"
        assert loaded(vm) == before + 1


def test_all_of_the_memory_is_the_same(snap: Path) -> None:
    with load(snap, lazy=True) as template, template.memory() as memory:
        assert memory.read(0, MEMORY) == memory_of(snap)
        assert not list(memory.changes())


def test_a_copy_is_not_read_before_the_guest_goes_on(copied: Path) -> None:
    spoil(copied, FAR)
    with pytest.raises(ConfigError, match="does not match its checksum"):
        Machine.restore(copied)
    with pytest.raises(ConfigError, match="does not match its checksum"):
        Machine.restore(copied, lazy=True, verify=True)
    with Machine.restore(copied, lazy=True) as vm:
        assert passed(vm.run(timeout=TIMEOUT_S))
        with pytest.raises(HostError, match=f"at {FAR:#x}.* does not match its checksum"):
            vm.memory.read(FAR, 8)
        with pytest.raises(HostError, match="does not match"):
            vm.snapshot(copied.with_name("not"))
        assert os.listdir(copied.parent) == ["copied"]


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (lambda folder: [spoil(folder, at) for at in range(0, 8 << 20, PIECE)], "checksum"),
        (lambda folder: os.truncate(folder / format.MEMORY, 5000), "has become shorter"),
    ],
)
def test_a_guest_that_needs_what_is_gone_ends(
    copied: Path, spoilt: Callable[[Path], object], why: str
) -> None:
    with load(copied, lazy=True) as template, template.machine() as vm, template.machine() as other:
        spoilt(copied)
        for each in (vm, other):
            with pytest.raises(HostError, match=why):
                each.run(timeout=TIMEOUT_S)
            with pytest.raises(Exception, match=r"ended|shorter|checksum"):
                each.run(timeout=TIMEOUT_S)


def test_a_file_that_is_removed_or_replaced_stays(copied: Path) -> None:
    with Machine.restore(copied, lazy=True) as vm:
        shutil.rmtree(copied)
        assert passed(vm.run(timeout=TIMEOUT_S))
        assert vm.memory.read(FAR, 8) == b"far away"


def test_forks_and_resets_share_what_was_read(snap: Path) -> None:
    with Machine.restore(snap, lazy=True) as vm, vm.fork() as fork:
        first = vm.run(timeout=TIMEOUT_S)
        second = fork.run(timeout=TIMEOUT_S)
        assert passed(first)
        assert passed(second)
        assert loaded(fork) == 0
        fork.reset()
        assert passed(fork.run(timeout=TIMEOUT_S))
        with fork.fork() as changed:  # whose memory is another where the guest has written
            assert loaded(changed) == 0
            assert changed.memory.read(FAR, 8) == b"far away"
            assert loaded(changed) == 1


def test_snapshots_of_it_are_as_any(snap: Path, tmp_path: Path) -> None:
    with Machine.restore(snap, lazy=True) as vm:
        vm.memory.write(HOST_WRITES, b"new")
        vm.snapshot(tmp_path / "one", base=snap)
        vm.snapshot(tmp_path / "full")
    assert is_full(tmp_path / "full")
    assert pages_in(tmp_path / "one") <= 3
    assert memory_of(tmp_path / "one") == memory_of(tmp_path / "full")


def test_checkpoints_of_it_are_as_any(snap: Path) -> None:
    with Machine.restore(snap, lazy=True) as vm:
        checkpoints = vm.checkpoints()
        checkpoints.take()
        outcome = vm.run(timeout=TIMEOUT_S)
        assert passed(outcome)
        checkpoints.take()
        for checkpoint in checkpoints:
            with checkpoint.machine() as again:
                assert again.memory.read(FAR, 8) == b"far away"
        with next(iter(checkpoints)).machine() as first:
            assert nonces(first.run(timeout=TIMEOUT_S)) == nonces(outcome)


def test_of_a_chain_the_full_one_is_read_lazily(tmp_path: Path) -> None:
    (tmp_path / "chain").mkdir()
    chain = take_chain(tmp_path / "chain")
    with load(chain / "two", lazy=True) as template, template.memory() as memory:
        assert memory.read(0, memory.size) == content(chain / "two")[-1]
        assert memory.read(HOST_WRITES + 8 * PAGE, PAGE) == bytes(PAGE)
    with Machine.restore(chain / "two", lazy=True) as vm:
        assert passed(vm.run(timeout=TIMEOUT_S))


def test_nothing_is_left_behind(snap: Path) -> None:
    Machine.restore(snap, lazy=True).close()
    before, threads = open_files(), os.listdir("/proc/self/task")
    for _ in range(3):
        with Machine.restore(snap, lazy=True) as vm, vm.fork() as fork:
            fork.run(timeout=TIMEOUT_S)
    assert open_files() == before
    assert len(os.listdir("/proc/self/task")) == len(threads)


def test_it_is_an_option_of_the_command_line(copied: Path) -> None:
    assert pykvm("restore", "--lazy", copied).returncode == 0
    for at in range(0, 8 << 20, PIECE):
        spoil(copied, at)
    result = pykvm("restore", "--lazy", copied)
    assert result.returncode == 125
    assert "its memory at 0x" in result.stderr
    assert "Traceback" not in result.stderr
    result = pykvm("restore", "--lazy", "--prefault", copied)
    assert result.returncode == 125
    assert "leave one of them out" in result.stderr


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_a_host_that_does_not_let_us_is_told(
    snap: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    class Refusing:
        def pk_lazy_create(self, *_: object) -> int:
            return -int(getattr(errno, error))

        def __getattr__(self, name: str) -> object:
            return getattr(lib, name)

    before = open_files()
    monkeypatch.setattr(lazy, "lib", Refusing())
    with pytest.raises(ConfigError, match=r"--lazy: this .* or leave --lazy out"):
        Machine.restore(snap, lazy=True)
    assert open_files() == before
