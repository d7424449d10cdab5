"""Every guest program runs on /dev/kvm and gives the verdict it promises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import guest_programs
from pykvm.boot.entry import CpuMode
from pykvm.outcome import Outcome, Reason

RunGuest = Callable[..., Outcome]


def passed(outcome: Outcome) -> bool:
    """The guest left by itself, with code 0, and complained of nothing."""
    return outcome.reason is Reason.EXIT and outcome.code == 0 and b"FAILED" not in outcome.console


@pytest.mark.parametrize("mode", list(CpuMode))
def test_hello_in_each_processor_mode(run_guest: RunGuest, mode: CpuMode) -> None:
    outcome = run_guest(f"hello-{mode.value}", mode=mode)
    assert passed(outcome)
    assert outcome.console == f"hello from {mode.value} mode\n".encode()


@pytest.mark.parametrize("name", ["hello-multiboot", "hello-pvh", "hello-elf64"])
def test_boot_protocol_hands_over_the_command_line(run_guest: RunGuest, name: str) -> None:
    outcome = run_guest(name, cmdline='one "two  three"')
    assert passed(outcome)
    assert b'one "two  three"\n' in outcome.console


@pytest.mark.parametrize("name", ["hello-multiboot", "hello-pvh", "hello-elf64"])
def test_boot_protocol_describes_all_of_memory(run_guest: RunGuest, name: str) -> None:
    outcome = run_guest(name, memory=64 << 20)
    assert passed(outcome)
    assert b"memory map: 0000000000100000, 3f00000 bytes, type 1\n" in outcome.console


def test_multiboot_modules_arrive_with_their_words(run_guest: RunGuest, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 5000)
    (tmp_path / "two").write_bytes(b"y")
    outcome = run_guest("hello-multiboot", modules=(f"{tmp_path}/one a b", f"{tmp_path}/two"))
    assert passed(outcome)
    assert b"module: 5000 bytes" in outcome.console
    assert b"one a b\n" in outcome.console
    assert b"module: 1 bytes" in outcome.console


def test_multiboot_without_elf(run_guest: RunGuest) -> None:
    outcome = run_guest("hello-aout")
    assert passed(outcome)
    assert outcome.console == b"hello from a.out\n"


def test_echo_answers_typed_lines_in_capitals(run_guest: RunGuest) -> None:
    outcome = run_guest("echo", typed=b"hello\rworld\nquit\n")
    assert passed(outcome)
    assert outcome.console.endswith(b"HELLO\nWORLD\nQUIT\n")


def test_echo_ends_at_ctrl_d(run_guest: RunGuest) -> None:
    assert passed(run_guest("echo", typed=b"quit, not\n\x04"))


def test_echo_loses_nothing_of_more_input_than_the_fifo_holds(run_guest: RunGuest) -> None:
    outcome = run_guest("echo", typed=b"abcdefgh" * 200 + b"\x04")
    assert passed(outcome)
    assert outcome.console.endswith(b"ends\n" + b"ABCDEFGH" * 200)


def test_timers_tick_and_wake_a_halted_cpu(run_guest: RunGuest) -> None:
    outcome = run_guest("timer", cmdline="ticks=5")
    assert passed(outcome)
    assert b"5 ticks of the PIT\n" in outcome.console
    assert b"5 ticks of the local APIC\n" in outcome.console


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_every_cpu_of_the_madt_starts(run_guest: RunGuest, cpus: int) -> None:
    outcome = run_guest("smp", cpus=cpus)
    assert passed(outcome)
    assert f"\n{cpus} CPU".encode() in outcome.console


@pytest.mark.parametrize("name", ["paging", "ring3"])
def test_guest_passes_all_its_checks(run_guest: RunGuest, name: str) -> None:
    outcome = run_guest(name)
    assert passed(outcome)
    assert outcome.console.count(b"ok: ") >= 2


@pytest.mark.parametrize("direction", ["in=0", "in=1"])
def test_each_port_access_is_one_exit(run_guest: RunGuest, direction: str) -> None:
    few = run_guest("exits", cmdline=f"count=100 {direction}")
    many = run_guest("exits", cmdline=f"count=300 {direction}")
    assert passed(many)
    assert many.stats.exits - few.stats.exits == 200


@pytest.mark.parametrize("value", [0, 1, 63])
def test_debug_exit_code_is_twice_the_value_plus_one(run_guest: RunGuest, value: int) -> None:
    outcome = run_guest("debugexit", cmdline=f"value={value}")
    assert (outcome.reason, outcome.code) == (Reason.EXIT, value * 2 + 1)


def test_triple_fault_is_reported_at_its_instruction(run_guest: RunGuest) -> None:
    outcome = run_guest("triplefault", mode=CpuMode.PROTECTED)
    assert (outcome.reason, outcome.code) == (Reason.TRIPLE_FAULT, 255)
    assert "ud2" in outcome.report


def test_halt_with_interrupts_off_is_found(run_guest: RunGuest) -> None:
    outcome = run_guest("hang", mode=CpuMode.REAL)
    assert (outcome.reason, outcome.code) == (Reason.HALTED, 255)


def test_endless_loop_ends_at_the_timeout(run_guest: RunGuest) -> None:
    outcome = run_guest("spin", mode=CpuMode.LONG, timeout=0.2)
    assert (outcome.reason, outcome.code) == (Reason.TIMEOUT, 124)


def test_reset_control_register_reboots(run_guest: RunGuest) -> None:
    outcome = run_guest("reset", mode=CpuMode.PROTECTED)
    assert (outcome.reason, outcome.code) == (Reason.REBOOT, 0)


def test_command_line_shows_the_guest_and_returns_its_code() -> None:
    kernel = guest_programs.path("debugexit")
    command = [sys.executable, "-m", "pykvm", "boot", kernel, "--append", "value=16"]
    assert subprocess.run(command, check=False, timeout=60).returncode == 33


def test_runs_one_after_the_other_are_alike(run_guest: RunGuest) -> None:
    first, second = (run_guest("hello-elf64") for _ in range(2))
    assert first._replace(stats=second.stats) == second
