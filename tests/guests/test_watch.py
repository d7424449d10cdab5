"""What the watcher makes of a guest's words and silence, and of the user's keys."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.console import Console
from pykvm.errors import KvmError
from pykvm.outcome import Outcome, Reason
from pykvm.vcpu import Vcpu

TEXT = 0x18_0000  # where the guest finds what it is to say
SAY = "be 00 00 18 00 b9 {length} 66 ba f8 03 fc f3 6e "  # mov esi, TEXT; mov ecx; rep outsb
HALT_FOR_EVER = "fa f4 eb fd"  # cli; hlt; jmp back
SPIN = "fb eb fe"  # sti; jmp to itself
RESET = "66 ba f9 0c b0 06 ee fa f4"  # 6 to port 0xcf9
TRIPLE_FAULT = "0f 01 1c 25 00 05 00 00 0f 0b"  # lidt [0x500], which is zero; ud2
NO_MEMORY = "b8 00 00 00 d0 ff e0"  # mov eax, 0xd0000000; jmp rax

PANIC = b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n"
PANIC_END = b"[    1.1] ---[ end Kernel panic - not syncing ]---\n"


def run(text: bytes, then: str, console: Console | None = None) -> Outcome:
    """Run a guest that says `text` and goes on with the code `then`."""
    code = SAY.format(length=len(text).to_bytes(4, "little").hex()) + then
    config = MachineConfig(kernel=bytes.fromhex(code), memory=2 << 20, mode=CpuMode.LONG)
    with Machine(config) as vm:
        vm.memory.write(TEXT, text)
        return vm.run(20.0, console)


@pytest.mark.parametrize("then", [HALT_FOR_EVER, RESET, TRIPLE_FAULT])
def test_panic_is_the_verdict_whatever_the_kernel_does_next(then: str) -> None:
    outcome = run(PANIC + PANIC_END, then)
    assert (outcome.reason, outcome.code) == (Reason.PANIC, 255)
    assert "kernel panic" in outcome.report
    assert "| [    1.0] Kernel panic" in outcome.report
    assert "no root file system" in outcome.report


def test_panic_of_a_kernel_that_stays_up_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.health.GRACE_END_S", 0.05)
    outcome = run(PANIC + PANIC_END, SPIN)
    assert (outcome.reason, outcome.code) == (Reason.PANIC, 255)


def test_panic_whose_trace_never_ends_ends_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.health.GRACE_S", 0.05)
    assert run(PANIC, SPIN).reason is Reason.PANIC


def test_linux_that_restarts_by_a_triple_fault_has_rebooted() -> None:
    outcome = run(b"[    2.0] reboot: Restarting system\n", TRIPLE_FAULT)
    assert (outcome.reason, outcome.code, outcome.report) == (Reason.REBOOT, 0, "")


def test_linux_that_halts_on_purpose_is_done() -> None:
    outcome = run(b"[    2.0] reboot: System halted\n", HALT_FOR_EVER)
    assert (outcome.reason, outcome.code, outcome.report) == (Reason.POWEROFF, 0, "")


def test_code_where_no_memory_is_is_reported_with_its_place() -> None:
    outcome = run(b"last words\n", NO_MEMORY)
    assert outcome.reason is Reason.INTERNAL_ERROR
    assert outcome.code == 125
    assert "suberror 1: KVM could not emulate an instruction" in outcome.report
    assert "0xd0000000" in outcome.report
    assert "| last words" in outcome.report
    assert "pykvm doctor" in outcome.report


class Keys(Console):
    """Somebody who types Ctrl-A commands, the next one when the screen has changed."""

    def __init__(self, *letters: str) -> None:
        self._letters = list(letters)
        self.screen = b""

    def take_commands(self) -> str:
        return self._letters.pop(0) if self._letters and self.screen else ""

    def write(self, data: bytes) -> None:
        self.screen += data


def test_ctrl_a_x_ends_the_machine() -> None:
    outcome = run(b"ready\n", SPIN, Keys("x"))
    assert (outcome.reason, outcome.code, outcome.report) == (Reason.QUIT, 0, "")


@pytest.mark.parametrize(("text", "told"), [(b"", 1), (b"ready\n", 0)])
def test_a_guest_without_a_word_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, text: bytes, told: int
) -> None:
    monkeypatch.setattr("pykvm.watch.SILENCE_S", 0.05)
    monkeypatch.setattr("pykvm.watch.HEALTH_FIRST_S", 0.05)
    code = bytes.fromhex(SAY.format(length=len(text).to_bytes(4, "little").hex()) + SPIN)
    words: list[str] = []
    with Machine(MachineConfig(kernel=code, memory=2 << 20, mode=CpuMode.LONG)) as vm:
        vm.memory.write(TEXT, text)
        vm.on_silence = words.append
        assert vm.run(0.3).reason is Reason.TIMEOUT
    assert len(words) == told
    assert all("vCPU 0: at 0x10" in each for each in words)


def test_ctrl_a_h_shows_the_keys() -> None:
    console: Any = Keys("hx")
    run(b"ready\n", SPIN, console)
    assert b"Ctrl-A x    end the machine" in console.screen


def test_a_vcpu_that_does_not_leave_the_guest_is_the_hosts_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pykvm.run.LEAVE_S", 0.05)
    code = bytes.fromhex(SPIN)
    with Machine(MachineConfig(kernel=code, memory=2 << 20, mode=CpuMode.LONG)) as vm:
        vcpu = vm.vcpus[0]
        leave = vcpu.kick
        monkeypatch.setattr(Vcpu, "kick", lambda _: None)
        with pytest.raises(KvmError, match="vCPU 0 was told to leave the guest"):
            vm.run(0.05)
        assert vcpu.handle.tid != 0  # still there
    leave()  # and what it uses is, too
    assert vm.parking.is_empty(wait_s=20)


def test_ctrl_a_question_mark_shows_where_each_cpu_is() -> None:
    console: Any = Keys("?x")
    run(b"ready\n", SPIN, console)
    assert b"vCPU 0: at 0x" in console.screen
    assert b"\r\n" in console.screen


def test_power_button_reaches_a_guest_that_looks() -> None:
    # mov dx, 0x600; in ax, dx; test ah, 1 (PWRBTN_STS); jz back; leave with 5
    wait = "66 ba 00 06 66 ed f6 c4 01 74 f9 66 ba f8 05 b0 05 ee"
    outcome = run(b"ready\n", wait, Keys("p"))
    assert (outcome.reason, outcome.code) == (Reason.EXIT, 5)
