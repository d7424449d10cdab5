"""The memory of forks: of a machine that changes between them, only the changes are copied."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from snapshots import PAGE, TIMEOUT_S, machine, memory_of, pages_in, passed

from pykvm.devices.vmgenid import SIZE as ID_SIZE
from pykvm.layout import VM_GENERATION_ID
from pykvm.machine import Machine
from pykvm.snapshot.layers import ADDED
from pykvm.snapshot.memoryfiles import GROWN

MEMORY = 32 << 20
BLOCK = 64 << 10


def bytes_of(vm: Machine) -> bytes:
    """All of the memory but the generation id, which each has of its own."""
    data = bytearray(vm.memory.read(0, vm.memory.size))
    data[VM_GENERATION_ID : VM_GENERATION_ID + ID_SIZE] = bytes(ID_SIZE)
    return bytes(data)


def inode(vm: Machine) -> int:
    assert vm.template is not None
    return os.fstat(vm.template.fd).st_ino


def copied(vm: Machine) -> int:
    """Bytes in the last layer that its forks have over the file."""
    assert vm.template is not None
    return sum(region.size for region in vm.template.layers[-1].ranges)


@pytest.fixture(params=["booted", "restored", "lazy"])
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    if request.param == "booted":
        vm = machine("rounds=2 ask=1", memory=MEMORY)
        vm.run(timeout=TIMEOUT_S)
        vm.fork().close()
    else:
        with machine("rounds=2 ask=1", memory=MEMORY) as saved:
            saved.run(timeout=TIMEOUT_S)
            saved.snapshot(tmp_path / "snap")
        vm = Machine.restore(tmp_path / "snap", lazy=request.param == "lazy")
    with vm:
        yield vm


def test_a_restored_machine_that_did_nothing_is_not_copied(vm: Machine) -> None:
    before = inode(vm)
    with vm.fork() as fork:
        assert inode(vm) == before
        assert not vm.template.layers  # type: ignore[union-attr]
        assert passed(fork.run(timeout=TIMEOUT_S))


def test_only_what_has_changed_is_copied(vm: Machine) -> None:
    before = inode(vm)
    vm.memory.write(29 << 20, b"here")
    vm.memory.write(30 << 20, b"and there")
    with vm.fork() as fork:
        assert inode(vm) == before
        assert copied(vm) == 2 * BLOCK
        assert bytes_of(fork) == bytes_of(vm)
        assert passed(fork.run(timeout=TIMEOUT_S))
    assert passed(vm.run(timeout=TIMEOUT_S))


def test_changes_in_many_places_are_copied_in_larger_pieces(vm: Machine) -> None:
    for number in range(2 * ADDED):
        vm.memory.write((12 << 20) + number * 2 * BLOCK, b"changed")
    with vm.fork() as fork:
        assert copied(vm) == 2 * ADDED * 2 * BLOCK
        assert bytes_of(fork) == bytes_of(vm)


def test_after_some_layers_all_is_copied_once(vm: Machine) -> None:
    before = inode(vm)
    for number in range(GROWN + 1):
        assert inode(vm) == before
        vm.memory.write((29 << 20) + number * PAGE, b"changed")
        with vm.fork() as fork:
            assert bytes_of(fork) == bytes_of(vm)
    assert inode(vm) != before
    assert not vm.template.layers  # type: ignore[union-attr]


def test_forks_resets_and_snapshots_have_what_there_was(vm: Machine, tmp_path: Path) -> None:
    random = Random(1)

    def scribble(machine: Machine) -> None:
        for _ in range(random.choice((1, 5, 200))):
            page = random.randrange(0x900, MEMORY // PAGE - 2)
            machine.memory.write(page * PAGE, random.randbytes(random.choice((8, 3 * PAGE, PAGE))))

    vm.snapshot(tmp_path / "base")
    forks = []
    for number in range(5):
        scribble(vm)
        forks.append((vm.fork(), bytes_of(vm)))
        if random.random() < 0.5:
            now = bytes_of(vm)
            scribble(vm)
            vm.reset()
            assert bytes_of(vm) == now
        if number == 3:
            vm.snapshot(tmp_path / "diff", base=tmp_path / "base")
            assert pages_in(tmp_path / "diff") < MEMORY // PAGE // 2
            assert memory_of(tmp_path / "diff") == vm.memory.read(0, MEMORY)
    for fork, was in forks:
        with fork:
            assert bytes_of(fork) == was
            scribble(fork)
            fork.reset()
            assert bytes_of(fork) == was
