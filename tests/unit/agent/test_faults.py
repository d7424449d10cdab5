"""What counts as a fault of the guest's kernel. The lines are those of real kernels."""

from __future__ import annotations

import pytest

from pykvm.agent.faults import faults

FAULTS = """
[    2.841022] WARNING: CPU: 0 PID: 74 at /src/sample.c:31 sample_init+0x41/0xff0 [sample]
[    2.9] BUG: kernel NULL pointer dereference, address: 0000000000000008
[   12.345678] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
[   12.345678] Oops: 0002 [#1] PREEMPT SMP NOPTI
[    3.1][   T74] BUG: KASAN: slab-out-of-bounds in f+0x1/0x2
[    3.1][    C0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:74]
general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1]
[    3.1] rcu: INFO: rcu_preempt self-detected stall on CPU
[    3.1] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:
[  243.1] INFO: task sh:74 blocked for more than 120 seconds.
[    3.1] kernel BUG at fs/ext4/inode.c:100!
[    3.1] UBSAN: array-index-out-of-bounds in drivers/x.c:1:2
WARNING: CPU: 1 PID: 74 at net/core/dev.c:1 without+0x1/0x2
[    3.1] Kernel panic - not syncing: Fatal exception
"""
OTHERS = """
WARNING: of a program's, which writes to the console
BUG in a program
[    0.1] Linux version 6.12: no BUG: here
[    0.1] ------------[ cut here ]------------
[    0.1] sample: loading out-of-tree module taints kernel.
[    0.1] EXT4-fs (vda): warning: mounting unchecked fs
"""


@pytest.mark.parametrize("line", FAULTS.strip().splitlines())
def test_fault_is_seen_among_other_lines(line: str) -> None:
    console = f"[    0.1] Booting\r\n{line}\r\n[    9.1] Call Trace:\r\n"
    assert faults(console.encode()) == [line]


@pytest.mark.parametrize("line", OTHERS.strip().splitlines())
def test_other_lines_are_none(line: str) -> None:
    assert faults(f"{line}\r\n".encode()) == []
