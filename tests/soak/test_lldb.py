"""The other debugger that speaks gdb's protocol: LLDB, on a guest with two vCPUs."""

from __future__ import annotations

import subprocess
import sys

from pykvm import guest_programs

COMMANDS = (
    "breakpoint set --name main", "continue", "thread step-inst", "register read rip cr0 xmm0",
    "register write rax 0x1234", "register read rax", "memory read $rip", "thread backtrace",
    "watchpoint set expression -s 4 -- 0x180000", "thread list", "breakpoint set --name check",
    "continue", "detach",
)  # fmt: skip


def test_lldb_breaks_steps_looks_and_leaves() -> None:
    guest = guest_programs.path("smp")
    boot = [sys.executable, "-m", "pykvm", "boot", guest, "-c", "2", "-m", "16M"]
    machine = subprocess.Popen(
        [*boot, "--gdb", "0", "--wait-gdb"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert machine.stderr is not None
    address = machine.stderr.readline().split("target remote ")[1].split(";")[0]
    words = ["lldb", "--batch", "--no-lldbinit"]
    for command in (f"file {guest}", f"gdb-remote {address}", *COMMANDS):
        words += ["-o", command]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    output, _ = machine.communicate(timeout=60)
    for expected in (
        "stop reason = breakpoint 1.1", "smp`main + 1", "cr0 = 0x0000000080000011", "xmm0 = {",
        "rax = 0x0000000000001234", "smp`_start + 13", "Watchpoint created", "thread #2",
        "stop reason = breakpoint 2.1", "Process 1 detached",
    ):  # fmt: skip
        assert expected in said, said
    assert machine.returncode == 0
    assert output.endswith("ok: all of them run\n")
