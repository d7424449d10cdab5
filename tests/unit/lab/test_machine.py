"""The lab's options, and the commands made of them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pykvm.errors import ConfigError, HostError
from pykvm.lab import machine
from pykvm.lab.machine import Plan, Spec, find_programs
from pykvm.virtiofsd import Virtiofsd

PLAN = Plan(
    Spec(3, 1024), "/bin/qemu", Virtiofsd("/bin/virtiofsd", False), "/k/vmlinux", "/k/initrd"
)


@pytest.mark.parametrize("cpus", [-1, 0, machine.CPUS_MAX + 1])
def test_number_of_cpus_out_of_range_is_refused_by_name(cpus: int) -> None:
    with pytest.raises(ConfigError, match="--cpus"):
        Spec(cpus=cpus)


@pytest.mark.parametrize("memory_mib", [-1, 0, machine.MEMORY_MIN_MIB - 1])
def test_too_little_memory_is_refused_by_name(memory_mib: int) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        Spec(memory_mib=memory_mib)


def test_plan_passes_as_text() -> None:
    assert Plan.loads(PLAN.dumps()) == PLAN


def test_qemu_gets_what_was_asked_for() -> None:
    command = PLAN.qemu_command(7, [8, 9])
    assert command[0] == "/bin/qemu"
    options = dict(pairwise(command))
    assert (options["-smp"], options["-m"]) == ("3", "1024M")
    assert (options["-kernel"], options["-initrd"]) == ("/k/vmlinux", "/k/initrd")
    assert "socket,id=port,fd=7" in command
    assert "socket,id=host,fd=8" in command
    assert "socket,id=shared,fd=9" in command


def test_port_is_the_first_virtio_device() -> None:
    """Its name in the lab has the number in it: /dev/vport0p1."""
    devices = [word for word in PLAN.qemu_command(7, [8, 9]) if "-pci" in word]
    assert devices[0].startswith("virtio-serial-pci")


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(HostError, match=r"no qemu-system-x86_64 and no virtiofsd.*packages"):
        find_programs()
