"""A distribution's kernel, from exec to its init's end: pykvm beside QEMU's microvm.

    pykvm lab -- python bench/boot.py KERNEL [--cpus N] [--rounds N] [--json FILE]

Both boot the same kernel file with the same initrd (pykvm's own init), command line, memory and
CPUs. QEMU's microvm comes as it is, and with a real-time clock, for whose absence Linux waits some
seconds. The last time it boots the vmlinux taken out of KERNEL, by PVH: pykvm decompresses on the
host, and so neither leaves that to the guest. init writes its exit code to port 0x5f8, where QEMU
is given a debug-exit device. Where /dev/kvm runs Linux, `pykvm lab --` can be left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

from measure import BUILD, Bar, Samples, interleaved, main, options, ratio, table

from pykvm.boot import initrd, setupheader, vmlinux
from pykvm.boot.files import open_image
from pykvm.guest_programs import path

MEMORY_MIB = 512
CMDLINE = "console=ttyS0 quiet panic=-1"
INIT_SAYS = b" reached init "
TIMEOUT_S = 300
QEMU = [
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
    *("-accel", "kvm", "-cpu", "host,-arch-capabilities"),
    *("-display", "none", "-serial", "stdio"),
    *("-device", "isa-debug-exit,iobase=0x5f8,iosize=1"),
]


def boot_ms(*words: object) -> tuple[float]:
    """Run a command line that boots the kernel to init's end: milliseconds."""
    command = [str(word) for word in words]
    started = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    elapsed = time.perf_counter() - started
    if INIT_SAYS not in done.stdout:
        sys.exit(f"{' '.join(command)}: {done.stdout!r} {done.stderr.decode()}")
    return (elapsed * 1e3,)


def extract_vmlinux(kernel: str) -> Path:
    """The vmlinux inside a bzImage, as a file."""
    image = open_image(kernel).data
    payload = vmlinux.find_payload(image, setupheader.SetupHeader.parse(image))
    if payload is None:
        sys.exit(f"{kernel}: no vmlinux inside")
    file = BUILD / "vmlinux"
    file.write_bytes(vmlinux.unpack(payload, MEMORY_MIB << 20))
    return file


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """One table."""
    archive = BUILD / "initrd"
    archive.write_bytes(initrd.build(Path(path("init")).read_bytes()))
    pykvm = [os.path.join(sysconfig.get_path("scripts"), "pykvm"), "boot", "--initrd", archive]
    pykvm += ["--append", CMDLINE, "-m", f"{MEMORY_MIB}M", "-c", args.cpus]
    qemu = [*QEMU, "-initrd", archive]
    qemu += ["-append", CMDLINE, "-m", MEMORY_MIB, "-smp", args.cpus]
    clock, plain = ("-M", "microvm,rtc=on"), extract_vmlinux(args.kernel)
    rivals = {
        "pykvm": partial(boot_ms, *pykvm, args.kernel),
        "QEMU": partial(boot_ms, *qemu, "-M", "microvm", "-kernel", args.kernel),
        "QEMU, clock": partial(boot_ms, *qemu, *clock, "-kernel", args.kernel),
        "QEMU, clock, vmlinux": partial(boot_ms, *qemu, *clock, "-kernel", plain),
    }
    (found,) = interleaved(rivals, args.rounds)
    table("exec to init's end, ms", found, "pykvm")
    bars = [
        Bar(f"exec to init's end, pykvm / {name}", ratio(found, "pykvm", name), 1.0)
        for name in rivals
        if name != "pykvm"
    ]
    return {"exec to init's end, ms": found}, bars


if __name__ == "__main__":
    parser = options("From exec to init's end.", rounds=5)
    parser.add_argument("kernel", metavar="KERNEL", help="a bzImage")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="default: 1")
    main(parser, run)
