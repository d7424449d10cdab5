"""From exec to the guest's first instruction, on the command line: pykvm, the floor in C, QEMU.

    python bench/start.py [--rounds N] [--json FILE]

The guest's first instructions send a byte to COM1, which leads to a pipe here, then leave by the
debug-exit port (floor/first.S). Timed from before the fork to the byte's arrival, and to the end of
the process. QEMU's microvm gets the guest as the kernel that pykvm gets; once more without its
optional devices, which is faster; and then in place of its firmware, which no user does but leaves
nothing between QEMU and the first instruction.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from argparse import Namespace
from functools import partial

from measure import Bar, Samples, compiled, interleaved, main, options, ratio, table

MEMORY = "256M"
QEMU = [
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
    # Without ARCH_CAPABILITIES: QEMU 7.2 aborts where KVM offers that MSR but cannot set it.
    *("-accel", "kvm", "-cpu", "host,-arch-capabilities"),
    *("-display", "none", "-serial", "stdio"),
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
]
LEAN = "microvm,acpi=off,pit=off,pic=off,rtc=off"


def boot_ms(*words: object) -> tuple[float, float]:
    """Run a command line: milliseconds to the guest's byte, and to the end of the process."""
    command = [str(word) for word in words]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    byte = os.read(process.stdout.fileno(), 1)
    first = time.perf_counter()
    _, errors = process.communicate()
    ended = time.perf_counter()
    if byte != b"!":
        sys.exit(f"{' '.join(command)}: {byte!r} {errors.decode()}")
    return (first - started) * 1e3, (ended - started) * 1e3


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """Two tables: first instruction, end of the process."""
    kernel = compiled("first.S", "elf", PVH=1)
    floor, flat = compiled("floor.c", "program"), compiled("first.S", "flat")
    pykvm = os.path.join(sysconfig.get_path("scripts"), "pykvm")
    rivals = {
        "floor": partial(boot_ms, floor, "start", flat, 256 << 20),
        "pykvm": partial(boot_ms, pykvm, "boot", "-m", MEMORY, kernel),
        "an empty Python": partial(boot_ms, sys.executable, "-c", "print('!')"),
    }
    if shutil.which(QEMU[0]):
        rom = compiled("first.S", "rom", FIRMWARE=1)
        qemu = (*QEMU, "-m", MEMORY, "-M")
        rivals["QEMU"] = partial(boot_ms, *qemu, "microvm", "-kernel", kernel)
        rivals["QEMU, lean"] = partial(boot_ms, *qemu, LEAN, "-kernel", kernel)
        rivals["QEMU, lean, no firmware"] = partial(boot_ms, *qemu, LEAN, "-bios", rom)
    first, end = interleaved(rivals, args.rounds)
    table("exec to first instruction, ms", first, "floor")
    table("exec to exit, ms", end, "floor")
    bars = [
        Bar(f"exec to first instruction, pykvm / {name}", ratio(first, "pykvm", name), 1.0)
        for name in rivals
        if name.startswith("QEMU")
    ]
    return {"exec to first instruction, ms": first, "exec to exit, ms": end}, bars


if __name__ == "__main__":
    main(options("From exec to the guest's first instruction.", rounds=20), run)
