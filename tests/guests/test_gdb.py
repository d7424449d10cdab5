"""A real gdb, and a client that is rude in ways gdb is not, on small guests."""

from __future__ import annotations

import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pykvm import Machine, MachineConfig, guest_programs
from pykvm.boot.entry import CpuMode
from pykvm.debug.breakpoints import Kind as Breakpoint
from pykvm.debug.rsp import Framer, Kind, frame
from pykvm.errors import ConfigError
from pykvm.outcome import Outcome, Reason

MEMORY = 2 << 20
LIMIT_S = 60
SPIN = "fb eb fe"  # sti; jmp to itself
HALT_FOR_EVER = "fa f4 eb fd"  # cli; hlt; jmp back
# mov ecx, 5; L: inc dword [0x180000]; dec ecx; jnz L; mov dx, 0x5f8; mov al, 7; out dx, al
COUNT = "b9 05 00 00 00  ff 04 25 00 00 18 00  ff c9 75 f5  66 ba f8 05 b0 07 ee eb fe"
STEPS = Path(__file__).parents[1] / "unit" / "debug" / "gdbsteps.py"
CODE, LOOP, COUNTER = 0x10_0000, 0x10_0005, 0x18_0000

Gdb = Callable[..., tuple[str, "subprocess.CompletedProcess[str]"]]


@pytest.fixture
def gdb(tmp_path: Path) -> Gdb:
    """``gdb(guest, *commands)``: what gdb says to a guest that waits for it, and pykvm's end."""
    if shutil.which("gdb") is None:
        if os.environ.get("CI") == "true":
            raise AssertionError("gdb is missing")
        pytest.skip("no gdb")

    def run(guest: str, *commands: str, options: tuple[str, ...] = (), file: bool = True) -> Any:
        path = guest if os.path.isabs(guest) else guest_programs.path(guest)
        spec = str(tmp_path / "gdb")
        boot = [sys.executable, "-m", "pykvm", "boot", path, "-m", "16M", "--wait-gdb", *options]
        machine = subprocess.Popen(
            [*boot, f"--gdb=unix:{spec}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert machine.stderr is not None
        assert "the guest waits for it" in machine.stderr.readline()
        words = ["gdb", "-q", "-nx", "-batch", "-ex", "set pagination off"]
        for command in ([f"file {path}"] if file else []) + [f"target remote {spec}", *commands]:
            words += ["-ex", command]
        told = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
        output, errors = machine.communicate(timeout=LIMIT_S)
        assert not os.path.exists(spec)
        end = subprocess.CompletedProcess(boot, machine.returncode, output, errors)
        return told.stdout + told.stderr, end

    return run


def test_gdb_breaks_steps_and_sees_the_end(gdb: Gdb) -> None:
    told, end = gdb(
        "hello-elf64", "break main", "continue", "backtrace", "stepi", "stepi",
        "info registers rip", "x/1i $pc", "info threads", "continue",
    )  # fmt: skip
    assert "Breakpoint 1, 0x" in told
    assert "#0  0x" in told
    assert re.search(r"rip +0x1000ec +0x1000ec <main\+4>", told)
    assert '* 1    Thread 1 "vCPU 0" (vCPU 0 [running])' in told
    assert "exited normally" in told
    assert end.returncode == 0, end
    assert "ok: the memory map has memory" in end.stdout


def test_a_thousand_steps_lose_no_instruction(gdb: Gdb) -> None:
    told, _ = gdb("hello-elf64", f"source {STEPS}", "python steps(1000)", "kill")
    assert "1000 steps, " in told, told
    assert " 0 indirect, 0 lost" in told, told


def test_gdb_sees_and_sets_registers_of_every_kind(gdb: Gdb) -> None:
    told, _ = gdb(
        "hello-elf64", "print $cr0", "print $efer", "print/x $gdt_base", "print $fs_base",
        "set $rbx = 0x123456789abcdef", "print/x $rbx",
        "set $xmm3.v4_int32[2] = 77", "print $xmm3.v4_int32", "print $mxcsr", "print $st0",
        "set $eflags = 0x202", "print $eflags", "kill",
    )  # fmt: skip
    for expected in (
        "[ PE ET PG ]", "[ LME LMA ]", "= 0x600", "= 0x123456789abcdef", "{0, 0, 77, 0}",
        "[ IM DM ZM OM UM PM ]", "[ IF ]",
    ):  # fmt: skip
        assert expected in told, told


def test_monitor_tells_what_packets_do_not(gdb: Gdb) -> None:
    told, end = gdb(
        "hello-elf64", "monitor pt $pc", "monitor msr 0xc0000080", "monitor devices",
        "monitor phys 0x600 32", "monitor regs", "monitor pt", "monitor xyz",
        "maintenance packet Qqemu.PhyMemMode:1", "x/1gx 0x9000", "kill",
    )  # fmt: skip
    for expected in (
        "4-level paging, CR3 at 0x9000", "PML4E[0]", "large page", "= 0x500", "ACPI PM1a",
        "ff ff 00 00 00 9b af 00", "ring 0, interrupts off",
        "usage: monitor pt ADDR", "'monitor help' lists", "0x9000:\t0x000000000000a0",
    ):  # fmt: skip
        assert expected in told, told
    assert end.returncode == 0


def test_monitor_reset_takes_the_machine_back_to_its_beginning(gdb: Gdb) -> None:
    fresh = ("maintenance flush register-cache", "print/x $pc")
    told, end = gdb(
        "hello-elf64", "print/x $pc", "break main", "continue", "monitor reset", *fresh,
        "continue", "delete", "stepi 20", "monitor reset", *fresh, "continue",
    )  # fmt: skip
    assert re.findall(r"^\$\d = (0x\w+)", told, re.MULTILINE) == ["0x10039a"] * 3, told
    assert told.count("Breakpoint 1, 0x") == 2
    assert "exited normally" in told
    assert end.stdout.count("ok: the memory map has memory") == 1


def test_a_reset_starts_the_other_vcpus_again(gdb: Gdb) -> None:
    last_check = ("ignore 1 2", "continue", "info threads")
    told, end = gdb(
        "smp", "break check", *last_check, "monitor reset", "maintenance flush register-cache",
        "info threads", *last_check, "delete", "continue", options=("-c", "2"),
    )  # fmt: skip
    running, waiting = r'Thread 2 "vCPU 1" \(vCPU 1 \[(running|halted)', "vCPU 1 [waits for INIT]"
    assert len(re.findall(running, told)) == 2, told
    assert told.count(waiting) == 1, told
    assert end.stdout.endswith("2 CPUs\nok: all of them run\n"), end


def test_a_watchpoint_lets_interrupts_come_and_go(gdb: Gdb) -> None:
    told, end = gdb(
        "timer", "watch *(long *)&ticks", "continue", "continue", "continue", "delete", "continue",
        options=("--append", "ticks=5"),
    )  # fmt: skip
    assert re.findall(r"New value = (\d+)", told) == ["1", "2", "3"], told
    assert end.stdout.count("ok: 5 ticks") == 2, end
    assert end.returncode == 0


def test_two_vcpus_are_two_threads(gdb: Gdb) -> None:
    told, end = gdb(
        "smp", "break main", "continue", "info threads", "thread 2", "print $pc", "continue",
        options=("-c", "2"),
    )  # fmt: skip
    assert "Thread 1 hit Breakpoint 1" in told or 'Thread 1 "vCPU 0" hit Breakpoint 1' in told
    assert '2    Thread 2 "vCPU 1" (vCPU 1 [waits for INIT])' in told
    assert "0xfffffff0" in told
    assert end.returncode == 0, end
    assert "ok: all of them run" in end.stdout


@pytest.mark.parametrize(
    ("guest", "mode", "architecture", "pc"),
    [("hello-real", "real", "i8086", "0xf0096"), ("hello-protected", "protected", "i386", CODE)],
)
def test_guests_without_long_mode_have_their_own_architecture(
    gdb: Gdb, guest: str, mode: str, architecture: str, pc: object
) -> None:
    told, end = gdb(
        guest, "show architecture", "print/x $pc", "stepi", "x/1i $pc",
        "tbreak *$pc", "info registers cs_base",
        options=("--mode", mode), file=False,
    )  # fmt: skip
    assert f'(currently "{architecture}")' in told
    assert f"= {pc if isinstance(pc, str) else hex(pc)}" in told
    # The linear address: in real mode gdb does not know that CS has a base.
    assert "0xf0098" in told if mode == "real" else "0x100005" in told
    assert end.returncode == 0  # gdb left: the guest went on


def test_gdb_finds_a_real_mode_breakpoint_by_its_linear_address(gdb: Gdb) -> None:
    told, _ = gdb(
        "hello-real", "break *0x7c00", "continue", "x/1i $pc", "kill",
        options=("--mode", "real"), file=False,
    )  # fmt: skip
    assert "Breakpoint 1, 0x00007c00" in told
    assert "=> 0x7c00:\txor    %ax,%ax" in told


SOURCE = """
volatile int total;
void work(void)
{
    for (int i = 0; i < 40; i++) total += i;
    total++;
}
void _start(void)
{
    work();
    __asm__ volatile("outb %b0, %w1" : : "a"(total - 738), "d"(0x5f8));
    for (;;) {}
}
"""


def test_gdb_steps_over_lines_of_source_by_ranges(gdb: Gdb, tmp_path: Path) -> None:
    (tmp_path / "code.c").write_text(SOURCE)
    flags = ["-g", "-O0", "-static", "-no-pie", "-nostdlib", "-ffreestanding", "-mno-red-zone"]
    flags += ["-fcf-protection=none", "-Wl,-Ttext-segment=0x100000", "-Wl,--build-id=none"]
    subprocess.run(["gcc", *flags, "-o", tmp_path / "code", tmp_path / "code.c"], check=True)
    told, end = gdb(
        str(tmp_path / "code"), "break work", "continue", "set debug remote 1", "next",
        "set debug remote 0", "print total", "continue",
    )  # fmt: skip
    steps = told.count("Sending packet: $vCont;")
    assert "$vCont;r" in told, told
    assert "$1 = 780" in told, told
    assert steps < 10, steps  # and not one for each of some hundred instructions
    assert end.returncode == 43, end


# vpcmpeqd ymm0, ymm0, ymm0; vpsrlq ymm1, ymm0, 60; vptest ymm2, ymm2; jz back; jmp to itself.
USE_AVX = "c5 fd 76 c0  c5 f5 73 d0 3c  c4 e2 7d 17 d2 74 f9  eb fe"


@pytest.mark.skipif(" avx2 " not in Path("/proc/cpuinfo").read_text(), reason="no AVX2 here")
def test_gdb_sees_and_sets_the_avx_registers_that_a_guest_uses() -> None:
    run = Run(USE_AVX, before=into_ring_3)  # which runs on the processor everywhere
    commands = (
        "print $ymm0.v8_int32", "print/x $ymm1.v4_int64", "set $ymm2.v4_int64[3] = 1", "detach",
    )  # fmt: skip
    words = ["gdb", "-q", "-nx", "-batch", "-ex", f"target remote {run.address}"]
    for command in commands:
        words += ["-ex", command]
    told = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    assert "= {-1, -1, -1, -1, -1, -1, -1, -1}" in told.stdout, told
    assert "= {0xf, 0xf, 0xf, 0xf}" in told.stdout, told
    # It sees what gdb has set in the upper half, and goes on.
    vm, end = run.machine, CODE + len(bytes.fromhex(USE_AVX)) - 2
    while run.thread.is_alive() and vm.at_rest(lambda: vm.vcpus[0].get_regs().rip) != end:
        pass
    vm.stop()
    assert run.end().reason is Reason.QUIT


def into_ring_3(vm: Machine) -> None:
    """Let `vm` begin in ring 3, with AVX switched on."""
    for level in vm.memory.walk(CODE).levels:
        vm.memory.write(level.gpa, (level.value | 1 << 2).to_bytes(8, "little"))
    sregs, xcrs = vm.vcpus[0].get_sregs(), vm.vcpus[0].get_xcrs()
    sregs.cr4 |= 1 << 9 | 1 << 18  # OSFXSR, OSXSAVE
    for segment in (sregs.cs, sregs.ss, sregs.ds, sregs.es):
        segment.selector |= 3
        segment.dpl = 3
    vm.vcpus[0].set_sregs(sregs)
    vm.vcpus[0].write_register("rflags", 0x202)  # interrupts on: no machine that hangs
    xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value = 1, 0, 7  # XCR0: x87, SSE, AVX
    vm.vcpus[0].set_xcrs(xcrs)


# ── without gdb: what it would never do ──────────────────────────────────────────────────────────


class Client:
    """A client of the remote protocol, packet by packet."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=LIMIT_S)
        self.framer = Framer()
        self.packets: list[bytes] = []

    def send(self, packet: bytes) -> None:
        self.socket.sendall(frame(packet))

    def receive(self) -> bytes:
        """The next packet; b"" at the end."""
        while not self.packets:
            data = self.socket.recv(65536)
            if not data:
                return b""
            self.packets += [e.payload for e in self.framer.feed(data) if e.kind is Kind.PACKET]
        return self.packets.pop(0)

    def ask(self, packet: bytes) -> bytes:
        self.send(packet)
        return self.receive()

    def rip(self) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(b"p10").decode()), "little")


class Run:
    """A machine that runs on a thread of its own, with a stub."""

    def __init__(
        self,
        code: str,
        timeout: float = LIMIT_S,
        before: Callable[[Machine], None] = lambda vm: None,
        **options: Any,
    ) -> None:
        options = {"memory": MEMORY, "mode": CpuMode.LONG, "gdb": "0", **options}
        self.machine = Machine(MachineConfig(kernel=bytes.fromhex(code), **options))
        assert self.machine.debugger is not None
        self.address = self.machine.debugger.where
        before(self.machine)
        self.outcome: Outcome | None = None
        self.timeout = timeout
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.outcome = self.machine.run(self.timeout)

    def end(self) -> Outcome:
        self.thread.join(LIMIT_S)
        assert self.outcome is not None
        return self.outcome


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Run, Client]]]:
    """``start(code)``: a machine that waits, and a client that it waits for."""
    opened: list[Any] = []
    runs: list[Run] = []

    def begin(code: str, **options: Any) -> tuple[Run, Client]:
        run = Run(code, **{"wait_gdb": True, **options})
        runs.append(run)
        client = Client(run.address)
        opened.append(client)
        return run, client

    yield begin
    for client in opened:
        client.socket.close()
    for run in runs:
        if run.thread.is_alive():
            run.machine.stop()
            run.thread.join()
        run.machine.close()


def test_nothing_runs_before_gdb_says_so(start: Any) -> None:
    run, client = start(COUNT)
    assert client.ask(b"?").startswith(b"T02thread:1;")
    assert client.rip() == CODE
    assert run.machine.memory.read(COUNTER, 4) == bytes(4)
    client.send(b"c")
    assert client.receive() == b"W07"
    assert run.end().code == 7


def test_a_breakpoint_left_in_its_place_is_stepped_over(start: Any) -> None:
    run, client = start(COUNT)
    client.ask(b"qSupported:swbreak+")
    assert client.ask(b"Z0,%x,1" % LOOP) == b"OK"
    for count in range(5):
        stop = client.ask(b"vCont;c")
        assert b"swbreak:" in stop
        assert client.rip() == LOOP
        assert run.machine.memory.read(COUNTER, 1)[0] == count
        assert client.ask(b"m%x,7" % LOOP) == b"ff042500001800"  # the guest's own bytes
    assert client.ask(b"c") == b"W07"


def test_more_breakpoints_than_debug_registers(start: Any) -> None:
    _, client = start(COUNT)
    places = [CODE, LOOP, LOOP + 7, LOOP + 9, LOOP + 11, LOOP + 15]
    for place in places:
        assert client.ask(b"Z0,%x,1" % place) == b"OK"
    seen = []
    for _ in range(12):
        assert client.ask(b"c").startswith(b"T05")
        seen.append(client.rip())
    assert seen[:8] == [LOOP, LOOP + 7, LOOP + 9] * 2 + [LOOP, LOOP + 7]


def test_every_step_is_one_instruction(start: Any) -> None:
    _, client = start(COUNT)
    seen = [client.rip()]
    for _ in range(13):
        assert client.ask(b"vCont;s:1").startswith(b"T05")
        seen.append(client.rip())
    assert seen == [CODE, *[LOOP, LOOP + 7, LOOP + 9] * 4, LOOP]


def test_a_range_is_stepped_through_in_one_go(start: Any) -> None:
    run, client = start(COUNT)
    assert client.ask(b"vCont;s:1").startswith(b"T05")
    assert client.ask(b"vCont;r%x,%x:1" % (LOOP, LOOP + 11)).startswith(b"T05")
    assert client.rip() == LOOP + 11  # the loop is over
    assert run.machine.memory.read(COUNTER, 1)[0] == 5


def test_a_breakpoint_stops_in_the_middle_of_a_range(start: Any) -> None:
    run, client = start(COUNT)
    assert client.ask(b"Z0,%x,1" % (LOOP + 7)) == b"OK"
    for count in range(1, 4):
        while client.rip() != LOOP + 7 or run.machine.memory.read(COUNTER, 1)[0] != count:
            # From a breakpoint the first step is one of its own.
            assert client.ask(b"vCont;r%x,%x:1" % (CODE, LOOP + 11)).startswith(b"T05")
        assert run.machine.memory.read(COUNTER, 1)[0] == count


def test_a_write_is_seen_where_it_happens(start: Any) -> None:
    run, client = start(COUNT)
    assert client.ask(b"Z2,%x,4" % COUNTER) == b"OK"
    for count in range(1, 6):
        assert b"watch:%x;" % COUNTER in client.ask(b"c")
        assert client.rip() == LOOP + 7  # after the instruction that wrote
        assert run.machine.memory.read(COUNTER, 1)[0] == count
    assert client.ask(b"c") == b"W07"


def test_ctrl_c_stops_a_guest_that_spins(start: Any) -> None:
    run, client = start(SPIN)
    client.send(b"c")
    client.socket.sendall(b"\x03")
    assert client.receive().startswith(b"T02thread:1;")
    assert client.rip() in (CODE, CODE + 1)
    client.send(b"k")
    assert run.end().reason is Reason.QUIT


def test_time_stands_still_with_the_guest(start: Any) -> None:
    run, client = start(SPIN, timeout=0.2)
    assert run.thread.is_alive()
    run.thread.join(0.5)  # longer than the guest may run
    assert run.thread.is_alive()
    assert client.ask(b"?").startswith(b"T02")
    client.send(b"c")
    assert client.receive() == b"W7c"
    assert run.end().reason is Reason.TIMEOUT


def test_a_dead_guest_is_shown_to_gdb(start: Any) -> None:
    _, client = start(HALT_FOR_EVER)
    said = bytes.fromhex(client.ask(b"c")[1:].decode())
    assert said == b"pykvm: the guest is halted with interrupts disabled\n"
    assert client.receive().startswith(b"T06")
    assert client.ask(b"m%x,1" % CODE) == b"fa"


def test_a_client_that_vanishes_leaves_the_guest_running(start: Any) -> None:
    run, client = start(COUNT)
    assert client.ask(b"Z0,%x,1" % LOOP) == b"OK"
    client.send(b"c")
    client.receive()
    client.socket.close()
    outcome = run.end()
    assert (outcome.reason, outcome.code) == (Reason.EXIT, 7)
    assert run.machine.memory.read(LOOP, 1) == b"\xff"


def test_after_a_detach_another_gdb_may_come(start: Any) -> None:
    run, client = start(SPIN)
    assert client.ask(b"D") == b"OK"
    second = Client(run.address)
    assert second.ask(b"?").startswith(b"T02")
    third = Client(run.address)
    assert third.socket.recv(1) == b""  # one at a time
    second.send(b"k")
    run.end()
    for each in (second, third):
        each.socket.close()


def test_registers_written_are_the_guests(start: Any) -> None:
    run, client = start(COUNT)
    # RIP to the end of the loop, and what is left in AL is overwritten there.
    assert client.ask(b"P10=" + (LOOP + 11).to_bytes(8, "little").hex().encode()) == b"OK"
    assert client.ask(b"M%x,1:2a" % (LOOP + 16)) == b"OK"  # mov al, 7 becomes mov al, 42
    assert client.ask(b"c") == b"W2a"
    assert run.end().code == 42


def test_threads_go_on_one_by_one(start: Any) -> None:
    _, client = start(COUNT, cpus=2)
    assert client.ask(b"qfThreadInfo") == b"m1,2"
    assert client.ask(b"vCont;s:1").startswith(b"T05thread:1;")
    client.send(b"vCont;c:2")  # waits for INIT, which nobody sends
    client.socket.sendall(b"\x03")
    assert client.receive().startswith(b"T02")
    assert client.ask(b"Hg1") == b"OK"
    assert client.rip() == LOOP


def test_noise_on_the_line_is_survived(start: Any) -> None:
    run, client = start(COUNT)
    client.socket.sendall(b"\xff\x00$$$###++--$g#00$m0,ffffffffffffffff#00\x03\x03" + b"$" * 5000)
    client.socket.sendall(b"#00" + b"a" * 100_000)
    client.send(b"qC")
    replies = [client.receive()]
    while replies[-1] != b"QC1":
        replies.append(client.receive())
    assert client.ask(b"c") == b"W07"
    assert run.end().code == 7


def test_a_kernels_address_means_the_same_to_a_vcpu_that_waits() -> None:
    config = MachineConfig(kernel=bytes.fromhex(SPIN), memory=MEMORY, mode=CpuMode.LONG, cpus=2)
    with Machine(config) as vm:
        table = vm.memory.walk(0).levels[0].gpa  # the PML4: its first entry gets a second name
        vm.memory.write(table + 8 * 511, vm.memory.read(table, 8))
        gva, control = (1 << 64) - (1 << 39) + CODE, vm.run_control()
        assert control.find(gva, 0).gpa == control.find(gva, 1).gpa == CODE


def test_a_copy_of_the_machine_has_no_breakpoint_in_its_memory() -> None:
    config = MachineConfig(kernel=guest_programs.path("hello-elf64"), memory=16 << 20)
    with Machine(config) as vm:
        main = vm.symbols["main"]
        before = vm.memory.read(main, 8)
        for at in range(main, main + 8):  # more than there are debug registers
            vm.run_control().breakpoints.insert(Breakpoint.SOFTWARE, at, 1)
        planted = vm.memory.read(main, 8)
        with vm.fork() as copy:
            assert copy.memory.read(main, 8) == before
        assert vm.memory.read(main, 8) == planted != before


@pytest.mark.parametrize("spec", ["", "gdb", "1234x", "localhost:", "65536", "-1", "unix:"])
def test_an_address_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="--gdb: "):
        Run(SPIN, gdb=spec)


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--gdb: cannot listen at 127.0.0.1:{port}: "):
            Run(SPIN, gdb=str(port))
    with pytest.raises(ConfigError, match="--gdb: /nowhere/socket: No such file"):
        Run(SPIN, gdb="unix:/nowhere/socket")


def test_a_socket_left_over_is_taken_over_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "gdb")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.listen()
    with pytest.raises(ConfigError, match=f"--gdb: {path} is in use"):
        Run(SPIN, gdb=f"unix:{path}")
    left.close()
    config = MachineConfig(kernel=bytes.fromhex(SPIN), memory=MEMORY, mode=CpuMode.LONG)
    with Machine(config._replace(gdb=f"unix:{path}")):
        assert os.path.exists(path)
    assert not os.path.exists(path)


def test_a_file_in_the_sockets_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"data")
    with pytest.raises(ConfigError, match=r"--gdb: .* is a file and no socket"):
        Run(SPIN, gdb=f"unix:{path}")
    assert path.read_bytes() == b"data"


def test_waiting_without_a_stub_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--wait-gdb: .* add --gdb"):
        MachineConfig(kernel=b"", wait_gdb=True)


def test_nothing_is_left_behind(start: Any, threads: Callable[..., int]) -> None:
    gc.collect()  # what other tests left is not counted
    fds, before = len(os.listdir("/proc/self/fd")), threads()
    for _ in range(3):
        run, client = start(COUNT)
        client.ask(b"Z0,%x,1" % LOOP)
        client.ask(b"c")
        client.send(b"k")
        run.end()
        client.socket.close()
        run.machine.close()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert threads(before) <= before
