"""The machine's promises, with guests of a few bytes of machine code: ends, devices, runs."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pykvm import Device, Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.config import parse_size
from pykvm.console import BytesConsole, Console
from pykvm.errors import ConfigError, PykvmError
from pykvm.outcome import Outcome, Reason

MEMORY = 2 << 20
TIMEOUT_S = 20.0  # far more than any of these takes


def machine(code: str, mode: CpuMode = CpuMode.LONG, **options: Any) -> Machine:
    """A machine whose guest is the bytes `code`, in hexadecimal, at 1 MiB (real mode: 0x7c00)."""
    options = {"memory": MEMORY, "mode": mode, "protocol": "flat", **options}
    return Machine(MachineConfig(kernel=bytes.fromhex(code), **options))


def run(code: str, mode: CpuMode = CpuMode.LONG, **options: Any) -> Outcome:
    with machine(code, mode, **options) as vm:
        return vm.run(timeout=TIMEOUT_S)


def byte_out(port: int, value: int) -> str:
    """mov dx, port; mov al, value; out dx, al. The same bytes in 32- and 64-bit code."""
    return f"66 ba {port.to_bytes(2, 'little').hex()} b0 {value:02x} ee "


EXIT = 0x5F8
HALT_FOR_EVER = "fa f4 eb fd"  # cli; hlt; jmp back
SPIN = "eb fe"
READ_FOR_EVER = "66 ba 20 05 ec eb fd"  # mov dx, 0x520; in al, dx; jmp to in
SAY_FOR_EVER = "66 ba f8 03 b0 2e ee eb fd"  # mov dx, 0x3f8; mov al, '.'; out dx, al; jmp to out


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [CpuMode.PROTECTED, CpuMode.LONG])
@pytest.mark.parametrize("value", [0, 1, 42, 255])
def test_plain_exit_code_is_the_byte_written(mode: CpuMode, value: int) -> None:
    outcome = run(byte_out(EXIT, value), mode)
    assert (outcome.reason, outcome.code, outcome.report) == (Reason.EXIT, value, "")


@pytest.mark.parametrize(("value", "code"), [(0, 1), (1, 3), (0x7F, 0xFF), (0x80, 1), (0xFF, 0xFF)])
def test_debug_exit_code_is_qemus_cut_to_a_byte(value: int, code: int) -> None:
    outcome = run(byte_out(0xF4, value))
    assert (outcome.reason, outcome.code) == (Reason.EXIT, code)


def test_real_mode_guest_leaves_with_its_code() -> None:
    assert run("ba f8 05 b0 07 ee", CpuMode.REAL).code == 7  # mov dx, 0x5f8; mov al, 7; out dx, al


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(byte_out(0xCF9, 0x06), id="reset control register"),
        pytest.param(byte_out(0xCF9, 0x02) + byte_out(0xCF9, 0x0E), id="the same, in two steps"),
        pytest.param(byte_out(0x64, 0xFE), id="keyboard controller"),
    ],
)
def test_reset_ends_the_run_as_a_reboot(code: str) -> None:
    outcome = run(code + HALT_FOR_EVER)
    assert (outcome.reason, outcome.code) == (Reason.REBOOT, 0)


def test_acpi_power_off_ends_the_run() -> None:
    # mov dx, 0x604; mov ax, 0x2000; out dx, ax: SLP_EN, and SLP_TYP 0 as \_S5 has it
    outcome = run("66 ba 04 06 66 b8 00 20 66 ef" + HALT_FOR_EVER)
    assert (outcome.reason, outcome.code) == (Reason.POWEROFF, 0)


def test_guest_that_can_never_wake_is_reported() -> None:
    outcome = run(HALT_FOR_EVER)
    assert (outcome.reason, outcome.code) == (Reason.HALTED, 255)
    assert "halted with interrupts disabled" in outcome.report
    assert "interrupts off" in outcome.report
    assert "remedy: " in outcome.report


def test_guest_that_jumps_to_itself_deaf_is_hung() -> None:
    outcome = run("fa" + SPIN)
    assert (outcome.reason, outcome.code) == (Reason.HUNG, 255)
    assert "eb fe   jmp 0x100001" in outcome.report


def test_triple_fault_tells_the_instruction() -> None:
    outcome = run("0f 01 1c 25 00 05 00 00 0f 0b")  # lidt [0x500], which is zero; ud2
    assert (outcome.reason, outcome.code) == (Reason.TRIPLE_FAULT, 255)
    assert "triple fault" in outcome.report


def test_timeout_tells_where_the_guest_was() -> None:
    with machine("fb" + SPIN) as vm:  # sti: something may still come
        outcome = vm.run(timeout=0.05)
    assert (outcome.reason, outcome.code) == (Reason.TIMEOUT, 124)
    assert "vCPU 0: at 0x10000" in outcome.report  # either instruction: the host may be busy
    assert "--timeout" in outcome.report


def test_first_end_counts() -> None:
    outcome = run(byte_out(EXIT, 3) + byte_out(EXIT, 4))
    assert outcome.code == 3


def test_outcome_has_the_console_and_what_it_cost() -> None:
    outcome = run(byte_out(0x3F8, ord("h")) + byte_out(0x3F8, ord("i")) + byte_out(EXIT, 0))
    assert outcome.console == b"hi"
    assert (outcome.stats.exits, outcome.stats.exits_in_c) == (3, 2)
    assert outcome.stats.seconds > 0


@pytest.mark.parametrize("size", ["1M", "1.5M", "3G", "3.5G", "4G", "5G"])
def test_memory_of_any_size_is_there_to_its_last_byte(size: str) -> None:
    # In real mode, where code is below 1 MiB: leave with 7.
    with machine("ba f8 05 b0 07 ee", CpuMode.REAL, memory=parse_size(size)) as vm:
        last = vm.memory.regions[-1].end - 1
        vm.memory.write(last, b"!")
        assert vm.run(timeout=TIMEOUT_S).code == 7
        assert vm.memory.read(last, 1) == b"!"


def test_guest_reads_the_last_byte_below_the_hole() -> None:
    code = "b9 ff ff ff bf 8a 01 66 ba f8 05 ee"  # mov ecx, 0xbfffffff; mov al, [rcx]; leave
    with machine(code, memory=parse_size("5G")) as vm:
        vm.memory.write(0xBFFF_FFFF, b"\x2a")
        assert vm.run(timeout=TIMEOUT_S).code == 0x2A


# ── devices of the user's own ────────────────────────────────────────────────────────────────────


def test_function_answers_at_ports() -> None:
    # mov dx, 0x520; in ax, dx; mov dx, 0x521; out dx, al; then leave with ah
    code = "66 ba 20 05 66 ed 66 ba 21 05 ee 88 e0 66 ba f8 05 ee"
    seen = []
    with machine(code) as vm:

        @vm.pio(0x520, size=2)
        def port(offset: int, size: int, value: int | None) -> int | None:
            seen.append((offset, size, value))
            return 0x2A17

        assert vm.run(timeout=TIMEOUT_S).code == 0x2A
    assert seen == [(0, 2, None), (1, 1, 0x17)]


def test_class_answers_in_memory() -> None:
    # mov ebx, 0xd0000000; mov rax, [rbx + 8]; mov [rbx + 16], eax; leave with al
    code = "bb 00 00 00 d0 48 8b 43 08 89 43 10 66 ba f8 05 ee"
    with machine(code) as vm:
        writes = []

        @vm.mmio(0xD000_0000, 0x1000)
        class Registers(Device):
            def read(self, offset: int, size: int) -> int:
                return 0x1122_3344_5566_7788 if (offset, size) == (8, 8) else 0

            def write(self, offset: int, size: int, value: int) -> None:
                writes.append((offset, size, value))

        assert vm.run(timeout=TIMEOUT_S).code == 0x88
    assert writes == [(0x10, 4, 0x5566_7788)]


def test_ports_and_memory_without_a_device_read_as_all_ones() -> None:
    # in al, dx (0x520); mov bl, [0xd0000000]; and al, bl; leave with al
    code = "66 ba 20 05 ec b9 00 00 00 d0 22 01 66 ba f8 05 ee"
    assert run(code).code == 0xFF


@pytest.mark.parametrize(("base", "size"), [(0x3F8, 1), (0x3FF, 4), (0x3F0, 0x20)])
def test_port_that_c_answers_for_is_refused(base: int, size: int) -> None:
    with machine(SPIN) as vm, pytest.raises(ConfigError, match="C answers for it"):
        vm.pio(base, size)


def test_device_takes_the_place_of_one_of_ours() -> None:
    # fw_cfg's ports: mov dx, 0x510; in al, dx; mov dx, 0x5f8; out dx, al
    code = "66 ba 10 05 ec 66 ba f8 05 ee"
    with machine(code) as vm:
        vm.pio(0x510, size=2)(lambda offset, size, value: 0x2A)
        assert vm.run(timeout=TIMEOUT_S).code == 0x2A


@pytest.mark.parametrize("gpa", [0, MEMORY - 1])
def test_mmio_where_memory_is_is_refused(gpa: int) -> None:
    with machine(SPIN) as vm, pytest.raises(ConfigError, match="guest memory is there"):
        vm.mmio(gpa, 0x1000)


def test_exception_in_a_device_ends_the_run_and_is_the_callers() -> None:
    class BrokenError(Exception):
        pass

    with machine(READ_FOR_EVER) as vm:

        @vm.pio(0x520)
        def broken(offset: int, size: int, value: int | None) -> int | None:
            raise BrokenError

        with pytest.raises(BrokenError):
            vm.run(timeout=TIMEOUT_S)


def test_device_may_stop_the_machine_with_a_code() -> None:
    with machine(READ_FOR_EVER) as vm:

        @vm.pio(0x520)
        def stop(offset: int, size: int, value: int | None) -> None:
            vm.stop(Reason.EXIT, 9)

        outcome = vm.run(timeout=TIMEOUT_S)
    assert (outcome.reason, outcome.code) == (Reason.EXIT, 9)


# ── running, pausing, running again ──────────────────────────────────────────────────────────────


def test_guest_goes_on_after_a_timeout() -> None:
    # inc ebx; mov eax, ebx; mov dx, 0x520; out dx, eax; jmp back
    with machine("ff c3 89 d8 66 ba 20 05 ef eb f5") as vm:
        counted: list[int] = []

        @vm.pio(0x520, size=4)
        def count(offset: int, size: int, value: int | None) -> None:
            counted.append(value or 0)
            if len(counted) % 100 == 0:
                vm.stop()

        for runs in range(1, 4):
            assert vm.run(timeout=TIMEOUT_S).reason is Reason.QUIT
            assert len(counted) == runs * 100
    assert counted == list(range(1, 301))


def test_resumed_run_does_not_poll_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine("fb" + SPIN) as vm:
        vm.run(timeout=0)
        import select

        polls = 0
        real_poll = select.poll

        def counting_poll() -> Any:
            nonlocal polls
            polls += 1
            return real_poll()

        monkeypatch.setattr(select, "poll", counting_poll)
        vm.run(timeout=0.2)
    assert polls < 20


def test_machine_that_has_ended_does_not_run_again() -> None:
    with machine(byte_out(EXIT, 0)) as vm:
        vm.run(timeout=TIMEOUT_S)
        with pytest.raises(PykvmError, match="has ended"):
            vm.run()


def test_stop_from_another_thread_ends_a_guest_that_spins() -> None:
    with machine("fb" + SPIN) as vm:
        timer = threading.Timer(0.05, vm.stop)
        timer.start()
        assert vm.run(timeout=TIMEOUT_S).reason is Reason.QUIT
        timer.join()


@pytest.mark.parametrize("code", ["fb" + SPIN, SAY_FOR_EVER, READ_FOR_EVER])
def test_timeout_ends_a_guest_wherever_it_is(code: str) -> None:
    with machine(code) as vm:
        assert vm.run(timeout=0.05).code == 124


def test_paused_machine_stands_still_and_shows_its_registers() -> None:
    # inc rbx; jmp back
    with machine("fb 48 ff c3 eb fb") as vm:
        seen: list[tuple[int, int]] = []

        def look() -> None:
            with vm.paused():
                before = vm.vcpus[0].read_register("rbx")
                after = vm.vcpus[0].read_register("rbx")
                seen.append((before, after))

        class Looking(Console):
            """Asked on the watching thread, as a debugger would be."""

            def input_fds(self) -> list[int]:
                look()
                if len(seen) == 5:
                    vm.stop()
                return []

            def take_commands(self) -> str:
                return ""

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pykvm.watch.HEALTH_FIRST_S", 0.01)
            patch.setattr("pykvm.watch.HEALTH_LONGEST_S", 0.01)
            vm.run(TIMEOUT_S, Looking())
    values = [value for pair in seen for value in pair]
    assert all(before == after for before, after in seen)
    assert values == sorted(values)


def test_registers_are_set_by_name_between_runs() -> None:
    # mov dx, 0x5f8; jmp to itself … ; out dx, al
    with machine("66 ba f8 05 fb eb fe ee") as vm:
        vm.run(timeout=1)  # a busy host may be slow to start the vCPU's thread
        vcpu = vm.vcpus[0]
        assert vcpu.read_register("rdx") & 0xFFFF == EXIT
        vcpu.write_register("rax", 0x99)
        vcpu.write_register("rip", vcpu.read_register("rip") + 2)
        assert vm.run(timeout=TIMEOUT_S).code == 0x99
        with pytest.raises(KeyError, match="nosuch"):
            vcpu.read_register("nosuch")
        with pytest.raises(KeyError, match="nosuch"):
            vcpu.write_register("nosuch", 0)


def test_guest_memory_is_shared_with_the_caller() -> None:
    # mov al, [0x180000]; mov [0x180001], al; leave with al
    code = "8a 04 25 00 00 18 00 88 04 25 01 00 18 00 66 ba f8 05 ee"
    with machine(code) as vm:
        vm.memory.write(0x18_0000, b"\x21")
        assert vm.run(timeout=TIMEOUT_S).code == 0x21
        assert vm.memory.read(0x18_0000, 2) == b"\x21\x21"


# ── the console ──────────────────────────────────────────────────────────────────────────────────

# Enable the receive interrupt in IER, then: wait for LSR.DR, read, leave at Ctrl-D, send back.
ECHO = (
    byte_out(0x3F9, 0x01)
    + "66 ba fd 03 ec a8 01 74 fb"  # poll: mov dx, 0x3fd; in al, dx; test al, 1; jz
    + "66 ba f8 03 ec 3c 04 74 03 ee eb eb"  # in al, dx; cmp al, 4; je; out dx, al; jmp poll
    + byte_out(EXIT, 0)
)


def test_typed_bytes_come_back_complete_and_in_order() -> None:
    typed = bytes(range(5, 256)) * 10
    with machine(ECHO) as vm:
        outcome = vm.run(TIMEOUT_S, BytesConsole(typed + b"\x04"))
    assert (outcome.code, outcome.console) == (0, typed)


def test_bytes_typed_before_a_timeout_are_there_after_it() -> None:
    # A guest that spins first: what is typed meanwhile waits on the host's side.
    with machine(SPIN + ECHO) as vm:
        console = BytesConsole(b"early\x04")
        vm.run(0.1, console)
        vcpu = vm.vcpus[0]
        vcpu.write_register("rip", vcpu.read_register("rip") + 2)
        outcome = vm.run(TIMEOUT_S, console)
    assert (outcome.code, outcome.console) == (0, b"early")


def test_guest_that_talks_faster_than_the_console_loses_nothing() -> None:
    # mov ecx, 100000; mov dx, 0x3f8; mov al, '.'; out dx, al; loop; leave
    code = "b9 a0 86 01 00 66 ba f8 03 b0 2e ee e2 fd" + byte_out(EXIT, 0)
    received = bytearray()

    class Slow(Console):
        def write(self, data: bytes) -> None:
            time.sleep(0.001)
            received.extend(data)

    with machine(code) as vm:
        assert vm.run(TIMEOUT_S, Slow()).code == 0
    assert received == b"." * 100_000


# ── nothing is left behind ───────────────────────────────────────────────────────────────────────


def test_a_hundred_machines_leave_no_descriptor_and_no_thread(
    threads: Callable[..., int],
) -> None:
    run(byte_out(EXIT, 0))  # whatever is opened once and for all
    gc.collect()  # what other tests have dropped is not to go meanwhile
    fds, before = os.listdir("/proc/self/fd"), threads()
    for i in range(100):
        assert run(byte_out(EXIT, i)).code == i
    assert len(os.listdir("/proc/self/fd")) == len(fds)
    assert threads(before) <= before


def test_the_thread_of_a_vcpu_has_its_name() -> None:
    names = []

    def note(offset: int, size: int, value: int | None) -> None:
        with open("/proc/thread-self/comm") as file:
            names.append(file.read())

    with machine(byte_out(0x510, 0) + byte_out(EXIT, 0)) as vm:
        vm.pio(0x510)(note)
        vm.run(TIMEOUT_S)
    assert names == ["vcpu 0\n"]


@pytest.mark.parametrize(
    "options",
    [
        {"cpus": 100_000},
        {"cpu": "host,+avx512_fp16,+amx_tile"},
        {"memory": 1 << 62},
        {"protocol": "multiboot", "mode": None},
        {"load": MEMORY},
    ],
    ids=str,
)
def test_machine_that_cannot_be_made_leaves_no_descriptor(options: dict[str, Any]) -> None:
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(PykvmError):
        machine(SPIN, **options)
    assert len(os.listdir("/proc/self/fd")) == len(fds)


def test_too_many_cpus_names_the_option_and_the_most() -> None:
    with pytest.raises(ConfigError, match=r"--cpus: 100000 is more than the \d+ vCPUs"):
        machine(SPIN, cpus=100_000)
