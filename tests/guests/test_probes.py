"""The doctor on this host's KVM: true answers where all KVMs agree, an answer in any case."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pykvm import doctor
from pykvm.boot.entry import CpuMode
from pykvm.doctor import capabilities, costs
from pykvm.doctor.checks import CHECKS
from pykvm.doctor.guest import EXCEPTION, Code, ProbeGuest
from pykvm.doctor.host import Host
from pykvm.kvm import Kvm

UD2 = b"\x0f\x0b"
CALL_SIZE = 5  # `call set_up`, with which a probe in long mode begins

# What no KVM that runs guests at all is known to lack, a KVM made of software included.
EVERYWHERE = (
    *("real_mode", "protected_mode", "long_mode", "ring3", "sysret"),
    *("page_fault", "ud2", "pit", "lapic_timer", "irqfd", "second_cpu", "swapgs"),
    *("string_io", "mmio", "ioeventfd_pio", "ioeventfd_mmio", "dirty_log"),
    *("immediate_exit", "kick_ring0", "kick_ring3", "step_ring0"),
)


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm


@pytest.fixture
def guest(kvm: Kvm) -> Iterator[ProbeGuest]:
    with ProbeGuest(kvm) as guest:
        yield guest


@pytest.mark.parametrize("key", EVERYWHERE)
def test_every_kvm_can(kvm: Kvm, key: str) -> None:
    check = next(check for check in CHECKS if check.key == key)
    with Host(kvm) as host:
        assert check.run(host).ok, check.run(host).detail


@pytest.mark.parametrize(
    ("probe", "mode"), [("real_mode", CpuMode.PROTECTED), ("protected_mode", CpuMode.REAL)]
)
def test_a_probe_in_the_wrong_mode_does_not_say_yes(
    guest: ProbeGuest, probe: str, mode: CpuMode
) -> None:
    guest.prepare(probe, mode)
    assert guest.run(limit_s=0.2).value != Code.YES


def test_a_triple_fault_is_an_answer(guest: ProbeGuest) -> None:
    guest.prepare("popcnt")
    guest.memory.write(guest.address("popcnt"), UD2)  # without an IDT yet
    assert guest.run().text == "triple fault"


def test_an_exception_is_an_answer(guest: ProbeGuest) -> None:
    guest.prepare("popcnt")
    guest.memory.write(guest.address("popcnt") + CALL_SIZE, UD2)
    answer = guest.run()
    assert answer.value == EXCEPTION + 6
    assert answer.regs.rcx == guest.address("popcnt") + CALL_SIZE


@pytest.mark.parametrize("probe", ["spin", "spin_in_ring3", "wait_for_interrupt"])
def test_a_probe_that_hangs_is_an_answer(guest: ProbeGuest, probe: str) -> None:
    guest.prepare(probe, rdi=0xFF)
    assert guest.run(limit_s=0.05).text == "no answer in 0.05 s"


def test_a_guest_is_as_new_after_any_bad_end(guest: ProbeGuest) -> None:
    for probe in ("spin", "spin_in_ring3", "int3", "cmpxchg16b"):
        guest.prepare(probe)
        guest.run(limit_s=0.05)
        assert guest.call("ring3").value == Code.YES


def test_a_wrong_result_is_not_a_yes(guest: ProbeGuest) -> None:
    guest.prepare("rdfsbase")
    at = guest.address("rdfsbase")
    code = guest.memory.read(at, 64)
    compare = code.index(b"\x48\x39\xd8")  # cmp %rbx, %rax
    guest.memory.write(at + compare, b"\x48\x85\xe4")  # test %rsp, %rsp
    assert guest.run().text in ("wrong result", "#UD")  # #UD: a CPU without FSGSBASE


def test_the_costs_are_measured(kvm: Kvm) -> None:
    figures = costs.measure(kvm)
    assert set(figures) == set(costs.LABELS)
    assert all(value is not None and value > 0 for value in figures.values())


def test_capabilities_are_read(kvm: Kvm) -> None:
    values = capabilities.read(kvm)
    assert values["max_vcpus"] == kvm.max_vcpus
    assert values["set_guest_debug"] == 1


def test_nothing_is_left_open(kvm: Kvm) -> None:
    doctor._ask()
    gc.collect()  # files of tests before this one
    before = sorted(os.listdir("/proc/self/fd"))
    with Host(kvm) as host:
        for check in CHECKS:
            check.run(host)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_command_agrees_with_the_question_boot_asks() -> None:
    command = [sys.executable, "-m", "pykvm", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == told["verdict"]["code"]
    assert set(told["checks"]) == {check.key for check in CHECKS}
    assert (told["verdict"]["level"] == "linux") == (doctor._ask() == "")


def test_the_command_prints_a_table_ending_in_the_verdict() -> None:
    command = [sys.executable, "-m", "pykvm", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("verdict: runs ")
