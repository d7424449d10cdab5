"""A made-up trace: a boot whose times and counts are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PID = 7
VCPU = 1  # the first vCPU's track
CONSOLE = 9001
MACHINE = 9000
SECOND = 1e6
MAP = """\
ffffffff81000000 T _text
ffffffff81001000 t serial_putchar
ffffffff81001100 T wait_for_xmitr
ffffffff81002000 T rtc_read
ffffffff81003000 D some_data
ffffffff81004000 W idle
""" + "".join(f"ffffffff82{n:06x} t filler{n}\n" for n in range(20))

# (host's second, line): what was said before 3.0 was kept until the console worked.
CONSOLE_LINES = (
    (3.0, "[    0.000000] Linux version 6.12.0 (me@here) #1"),
    (3.1, "[    0.500000] Kernel command line: console=ttyS0"),
    (3.2, "[    1.000000] Console: colour dummy device 80x25"),
    (3.5, "[    2.000000] printk: legacy console [ttyS0] enabled"),
    (3.6, "[    2.100000] Calibrating delay loop (skipped)"),
    (4.0, "[    2.500000] smp: Brought up 1 node, 1 CPU"),
    (9.0, "[    7.500000] Run /init as init process"),
    (9.5, "pykvm: Linux 6.12.0 reached init after 9.00 s"),
)


def exit_event(ts: float, name: str, *, rip: int, dur: float = 5.0, **args: Any) -> dict[str, Any]:
    kind = args.pop("kind", "exit")
    fields = {"reason": "IO", "rip": hex(rip), "guest_us": 40.0, "by": "C", **args}
    if kind == "exit":
        fields |= {"address": name.split()[1], "size": 1, "write": True, "value": "0x0", "count": 1}
    head = {"ph": "X", "pid": PID, "tid": VCPU, "ts": ts, "dur": dur, "cat": kind, "name": name}
    return {**head, "args": fields}


def mark(ts: float, track: int, kind: str, name: str, **args: Any) -> dict[str, Any]:
    head = {"ph": "i", "s": "t", "pid": PID, "tid": track, "ts": ts, "cat": kind, "name": name}
    return {**head, "args": args}


def boot(kernel: str = "/boot/vmlinuz-6.12", *, ended: bool = True) -> list[dict[str, Any]]:
    """The events of a boot of ten seconds."""
    events: list[dict[str, Any]] = [
        mark(
            0.9 * SECOND,
            MACHINE,
            "machine",
            "the machine",
            kernel=kernel,
            cmdline="console=ttyS0",
            regions=[[0, 256 << 20]],
            placed=[[0x600, 0x620, "pykvm's GDT"], [0x100000, 0x900000, "the kernel's <segment>"]],
            devices=[[0, 0x3F8, 0x400, "serial"], [1, 0xD0000000, 0xD0001000, "virtio-mmio rng"]],
            cpus=1,
        ),
        exit_event(1 * SECOND, "out 0x70 CMOS/RTC", rip=0xFFFFFFFF81002004, dur=900.0),
    ]
    for n in range(1000):
        at = 3 * SECOND + n * 100
        events.append(exit_event(at, "out 0x3f8 serial", rip=0xFFFFFFFF81001010))
        events.append(exit_event(at + 50, "in 0x3fd serial", rip=0xFFFFFFFF81001110))
    for n in range(50):
        at = 5 * SECOND + n * 10_000
        events.append(exit_event(at, "sample", rip=0xFFFFFFFF81004002, kind="sample"))
    events += [mark(at * SECOND, CONSOLE, "console", line) for at, line in CONSOLE_LINES]
    events.append(mark(9.6 * SECOND, 10116, "queue-kick", "kick queue 0", gsi=16, value=0, count=1))
    events.append(exit_event(10 * SECOND, "out 0x604 ACPI PM1a", rip=0xFFFFFFFF81002010))
    if ended:
        kvm = {"io_exits": 5002, "halt_wait_ns": 1_500_000_000, "irq_injections": 77}
        end = mark(10.1 * SECOND, MACHINE, "end", "the run ends", lost=0, kvm=kvm, exits=[2002])
        events.append(end)
    return events


def write(path: Path, events: list[dict[str, Any]]) -> str:
    """As pykvm writes them: an event a line."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n")
    return str(path)
