"""The KVM layer on the host's own KVM: state goes in and comes back, events arrive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pykvm._core import ffi, lib
from pykvm.bus import Bus
from pykvm.devices.base import FunctionDevice
from pykvm.errors import KvmError
from pykvm.kvm import Kvm, Vm, pack_cpuid
from pykvm.memory import GuestMemory
from pykvm.vcpu import GENERAL_REGISTERS, Vcpu

MSR_LSTAR, MSR_NONE = 0xC000_0082, 0xDEAD_BEEF
CODE = 0x1000


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm
        kvm.close()  # twice is harmless


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with Vm(kvm) as vm:
        vm.create_irqchip()
        yield vm
        vm.close()


@pytest.fixture
def memory(vm: Vm) -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        vm.map_memory(memory)
        yield memory


@pytest.fixture
def vcpu(kvm: Kvm, vm: Vm, memory: GuestMemory) -> Iterator[Vcpu]:
    bus = lib.pk_bus_create()
    with Vcpu(kvm, vm, 0, bus) as vcpu:
        vcpu.set_cpuid(pack_cpuid(kvm.supported_cpuid()))
        yield vcpu
    vcpu.close()
    lib.pk_bus_destroy(bus)


def execute(vcpu: Vcpu, memory: GuestMemory, code: str) -> list[tuple[int, int]]:
    """Run real-mode code until it touches port 0xff; the other ports it wrote to, and what."""
    memory.write(CODE, bytes.fromhex(code) + b"\xe6\xff")  # out 0xff, al
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.write_register("rip", CODE)
    written: list[tuple[int, int]] = []

    def port(offset: int, size: int, value: int | None) -> None:
        if offset == 0xFF:
            vcpu.kick()
        elif value is not None:
            written.append((offset, value))

    ports = Bus("port")
    ports.add(0, 0x100, FunctionDevice(port))
    vcpu.run(ports, Bus("mmio"), lambda _vcpu, _exit: False)
    assert vcpu.handle.exit.kind == lib.PK_EXIT_KICK
    return written


def test_every_general_register_is_kept(vcpu: Vcpu) -> None:
    for number, name in enumerate(GENERAL_REGISTERS):
        value = 2 if name == "rflags" else 0x1111_2222_3333_0000 + number
        vcpu.write_register(name, value)
        assert vcpu.read_register(name) == value


def test_segments_and_control_registers_are_read_by_name(vcpu: Vcpu) -> None:
    assert vcpu.read_register("cs") == 0xF000  # out of reset: AMD APM vol. 2 table 14-1
    assert vcpu.read_register("cr0") & 0x10
    vcpu.write_register("cr2", 0xABC000)
    assert vcpu.read_register("cr2") == 0xABC000


@pytest.mark.parametrize(
    "name", ["fpu", "xsave", "xcrs", "lapic", "events", "debugregs", "regs", "sregs"]
)
def test_state_comes_back_as_it_was_set(vcpu: Vcpu, name: str) -> None:
    get, put = getattr(vcpu, f"get_{name}"), getattr(vcpu, f"set_{name}")
    before = get()
    put(before)
    assert bytes(ffi.buffer(get())) == bytes(ffi.buffer(before))


def test_mp_state_can_be_set(vcpu: Vcpu) -> None:
    vcpu.set_mp_state(lib.KVM_MP_STATE_HALTED)
    assert vcpu.get_mp_state() == lib.KVM_MP_STATE_HALTED


def test_msrs_are_set_and_those_that_are_none_are_told(vcpu: Vcpu) -> None:
    assert vcpu.set_msrs({MSR_LSTAR: 0xFFFF_8000_0000_1000}) == []
    assert vcpu.get_msrs([MSR_LSTAR]) == {MSR_LSTAR: 0xFFFF_8000_0000_1000}


def test_msr_that_kvm_does_not_have_is_left_out(vcpu: Vcpu) -> None:
    indices = [MSR_LSTAR, MSR_NONE, 0x10]
    values = vcpu.get_msrs(indices)
    assert MSR_LSTAR in values
    assert 0x10 in values  # what follows the unknown one is read all the same


def test_msr_list_has_the_ones_every_kvm_has(kvm: Kvm) -> None:
    assert MSR_LSTAR in kvm.msr_indices()


def test_kvmclock_is_read_and_set(vm: Vm) -> None:
    clock = vm.get_clock()
    clock.clock += 10**15
    clock.flags = 0
    vm.set_clock(clock)
    assert vm.get_clock().clock >= 10**15


def test_guest_writes_are_in_the_dirty_log_once(
    kvm: Kvm, vm: Vm, vcpu: Vcpu, memory: GuestMemory
) -> None:
    vm.map_memory(memory, log_dirty=True)
    vm.dirty_log(0, memory.size)
    execute(vcpu, memory, "c6 06 00 50 01")  # mov byte [0x5000], 1
    bits = int.from_bytes(vm.dirty_log(0, memory.size), "little")
    assert bits >> 5 & 1
    assert not bits >> 6 & 1
    assert not int.from_bytes(vm.dirty_log(0, memory.size), "little") >> 5 & 1


def test_ioeventfd_takes_the_write_instead_of_an_exit(
    vm: Vm, vcpu: Vcpu, memory: GuestMemory
) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    vm.ioeventfd(event, 0x50, 1, pio=True, datamatch=7)
    assert execute(vcpu, memory, "b0 07 e6 50 b0 08 e6 50") == [(0x50, 8)]  # 7, then 8
    assert os.eventfd_read(event) == 1
    vm.ioeventfd(event, 0x50, 1, pio=True, datamatch=7, assign=False)
    assert execute(vcpu, memory, "b0 07 e6 50") == [(0x50, 7)]
    os.close(event)


def requested_interrupts(vcpu: Vcpu, memory: GuestMemory) -> int:
    """The master 8259's interrupt request register, as a guest reads it."""
    # mov al, 0x0a; out 0x20, al; in al, 0x20; out 0x50, al
    ((_, value),) = execute(vcpu, memory, "b0 0a e6 20 e4 20 e6 50")
    return value


def test_interrupt_line_reaches_the_interrupt_controller(
    vm: Vm, vcpu: Vcpu, memory: GuestMemory
) -> None:
    assert not requested_interrupts(vcpu, memory) >> 5 & 1
    vm.irq_line(5, 1)
    assert requested_interrupts(vcpu, memory) >> 5 & 1


def test_irqfd_reaches_the_interrupt_controller(vm: Vm, vcpu: Vcpu, memory: GuestMemory) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    vm.irqfd(event, 6)
    os.eventfd_write(event, 1)
    while not requested_interrupts(vcpu, memory) >> 6 & 1:
        pass  # a kernel thread injects it, in its own time
    vm.irqfd(event, 6, assign=False)
    os.close(event)


def test_address_is_translated_as_the_guest_sees_it(vcpu: Vcpu) -> None:
    assert vcpu.translate(0x1234) == 0x1234


@pytest.mark.parametrize("bad", [-1, 1 << 20])
def test_vcpu_id_out_of_range_is_an_error_with_its_name(
    kvm: Kvm, vm: Vm, vcpu: Vcpu, bad: int
) -> None:
    with pytest.raises((KvmError, OverflowError), match=r"KVM_CREATE_VCPU|negative|uint32"):
        Vcpu(kvm, vm, bad, ffi.NULL)


def test_second_irqchip_is_an_error_with_its_name(vm: Vm) -> None:
    with pytest.raises(KvmError, match="KVM_"):
        vm.create_irqchip()


def test_capability_that_does_not_exist_is_zero(kvm: Kvm) -> None:
    assert kvm.check_extension(0x7FFF_0000) == 0
    assert kvm.check_extension(lib.KVM_CAP_USER_MEMORY) > 0


def test_kick_before_the_run_ends_it_at_once(vcpu: Vcpu) -> None:
    reasons: list[Any] = []

    def other(_vcpu: Vcpu, exit: Any) -> bool:
        reasons.append(exit.kind)
        return False

    vcpu.kick()
    vcpu.run(Bus("port"), Bus("mmio"), other)
    assert reasons == [lib.PK_EXIT_KICK]


def test_the_guest_is_told_the_processors_name() -> None:
    with Kvm() as kvm:
        rows = [e for e in kvm.supported_cpuid() if 0x8000_0002 <= e.function <= 0x8000_0004]
    name = b"".join(value.to_bytes(4, "little") for row in rows for value in row[3:])
    assert name.rstrip(b"\0 ").decode() in Path("/proc/cpuinfo").read_text()
    assert name.strip(b"\0 ")
