"""A machine's state, set by one list of ioctls on any number of machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm import guest_programs
from pykvm._core import ffi, lib
from pykvm.config import MachineConfig
from pykvm.errors import KvmError
from pykvm.machine import Machine
from pykvm.snapshot.calls import VM, Calls
from pykvm.vcpu import msr_table, pack_msrs

BOOT_VCPU = VM + 1
MSR_SYSENTER_CS, MSR_MTRRCAP, MSR_NONE = 0x174, 0xFE, 0xDEAD_BEEF


@pytest.fixture
def vm() -> Iterator[Machine]:
    config = MachineConfig(kernel=guest_programs.path("snapshot"), memory=16 << 20)
    with Machine(config) as machine:
        yield machine


def regs(**values: int) -> bytes:
    return bytes(ffi.buffer(ffi.new("struct kvm_regs *", values)))


def msrs(values: dict[int, int]) -> bytes:
    return msr_table(pack_msrs(values))


def test_calls_are_made_in_order_on_every_machine_alike(vm: Machine) -> None:
    calls = Calls()
    calls.add(BOOT_VCPU, lib.KVM_SET_REGS, regs(rbx=1, rflags=2), "KVM_SET_REGS")
    calls.add(BOOT_VCPU, lib.KVM_SET_REGS, regs(rbx=2, rflags=2), "KVM_SET_REGS")
    with vm.fork() as fork:
        for machine in (vm, fork, vm):
            calls.make(machine)
            assert machine.vcpus[0].read_register("rbx") == 2


def test_the_call_that_fails_is_named_and_those_after_it_are_not_made(vm: Machine) -> None:
    calls = Calls()
    calls.add(BOOT_VCPU, lib.KVM_SET_REGS, regs(rbx=1, rflags=2), "KVM_SET_REGS")
    calls.add(VM, lib.KVM_SET_REGS, regs(rbx=2, rflags=2), "KVM_SET_REGS of a VM")
    calls.add(BOOT_VCPU, lib.KVM_SET_REGS, regs(rbx=3, rflags=2), "KVM_SET_REGS")
    with pytest.raises(KvmError, match="KVM_SET_REGS of a VM"):
        calls.make(vm)
    assert vm.vcpus[0].read_register("rbx") == 1


def test_an_msr_that_kvm_refuses_must_have_its_value_already(vm: Machine) -> None:
    vcpu = vm.vcpus[0]
    (cap,) = vcpu.get_msrs([MSR_MTRRCAP]).values()  # read-only, for the host also
    good, bad = Calls(), Calls()
    good.add(
        BOOT_VCPU, lib.KVM_SET_MSRS, msrs({MSR_MTRRCAP: cap, MSR_SYSENTER_CS: 8}), "KVM_SET_MSRS"
    )
    good.make(vm)
    assert vcpu.get_msrs([MSR_SYSENTER_CS]) == {MSR_SYSENTER_CS: 8}
    bad.add(BOOT_VCPU, lib.KVM_SET_MSRS, msrs({MSR_MTRRCAP: cap + 1}), "KVM_SET_MSRS")
    with pytest.raises(KvmError, match="KVM_SET_MSRS"):
        bad.make(vm)


def test_an_msr_that_there_is_not_is_refused(vm: Machine) -> None:
    calls = Calls()
    table = msrs({MSR_NONE: 0, MSR_SYSENTER_CS: 8})
    calls.add(BOOT_VCPU, lib.KVM_SET_MSRS, table, "KVM_SET_MSRS")
    with pytest.raises(KvmError, match="KVM_SET_MSRS"):
        calls.make(vm)
