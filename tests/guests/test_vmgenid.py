"""The VM generation id: every machine has its own, and a copy of one hears of its new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm import guest_programs, layout
from pykvm.boot.entry import CpuMode
from pykvm.config import MachineConfig
from pykvm.devices import pm
from pykvm.machine import Machine
from pykvm.outcome import Reason

TIMEOUT_S = 60.0
ASK = 0x10_0000  # where the machine code below is
SEEN = 0x20_0000  # where it leaves what it saw

# mov edx, 0x607; mov al, 1; out dx, al            enable the event
# mov dx, 0x5f9; out dx, al                        ask for a snapshot, and go on in every copy
# mov esi, 0xef000; mov edi, SEEN; mov ecx, 16; rep movsb
# mov dx, 0x606; in al, dx; stosb                  the event's status
# mov dx, 0x5f8; mov al, 0; out dx, al; hlt        leave with 0
CODE = bytes.fromhex(
    "ba 07 06 00 00 b0 01 ee 66 ba f9 05 ee be 00 f0 0e 00 bf 00 00 20 00 b9 10 00 00 00 f3 a4"
    "66 ba 06 06 ec aa 66 ba f8 05 b0 00 ee f4"
)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Machine]:
    """A machine that stands where its copies go on from."""
    (tmp_path / "code").write_bytes(CODE)
    config = MachineConfig(
        kernel=str(tmp_path / "code"),
        protocol="flat",
        mode=CpuMode.PROTECTED,
        load=ASK,
        entry=ASK,
        memory=4 << 20,
    )
    with Machine(config) as machine:
        machine.on_snapshot_request = machine.stop
        machine.run(timeout=TIMEOUT_S)
        yield machine


def seen(machine: Machine) -> tuple[bytes, int]:
    """The id and the event's status, as the guest sees them."""
    outcome = machine.run(timeout=TIMEOUT_S)
    assert (outcome.reason, outcome.code) == (Reason.EXIT, 0), outcome
    found = machine.memory.read(SEEN, 17)
    return found[:16], found[16] >> pm.GPE_NEW_ID & 1


def test_every_boot_draws_an_id() -> None:
    config = MachineConfig(kernel=guest_programs.path("snapshot"), memory=16 << 20)
    with Machine(config) as one, Machine(config) as other:
        ids = {machine.memory.read(layout.VM_GENERATION_ID, 16) for machine in (one, other)}
    assert len(ids) == 2
    assert bytes(16) not in ids


def test_restored_and_forked_guests_see_new_ids_and_the_event_and_their_origin_does_not(
    vm: Machine, tmp_path: Path
) -> None:
    own = vm.memory.read(layout.VM_GENERATION_ID, 16)
    vm.snapshot(tmp_path / "snap")
    ids = []
    for _ in range(2):
        with Machine.restore(tmp_path / "snap") as restored, vm.fork() as fork:
            for copy in (restored, fork):
                found, event = seen(copy)
                assert event == 1
                ids.append(found)
    assert len({own, *ids}) == 5
    assert seen(vm) == (own, 0)


def test_reset_leaves_a_machine_the_id_that_it_has(vm: Machine) -> None:
    with vm.fork() as fork:
        first = seen(fork)
        fork.reset()
        assert seen(fork) == first
        assert first[0] == fork.generation_id.value


def test_a_fork_that_has_not_run_shares_its_memory_with_its_own_forks(vm: Machine) -> None:
    with vm.fork() as fork:
        beneath = os.fstat(fork.memory.file).st_ino
        with fork.fork() as grandchild:
            assert os.fstat(grandchild.memory.file).st_ino == beneath
            assert seen(grandchild)[0] not in {vm.generation_id.value, fork.generation_id.value}
