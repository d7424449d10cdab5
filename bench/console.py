"""Text from a Linux guest to the host: the serial port, a virtio console, and QEMU's of each.

    pykvm lab -- python bench/console.py KERNEL [--kib N] [--rounds N] [--json FILE]

A program in the guest writes N KiB to its terminal, to hvc0 four times as much because the clock
it reads ticks in 10 ms; then the kernel writes 64 messages of 100 bytes to its console. A serial
byte is an exit or more. QEMU is a q35 with the same kernel and initrd. Where /dev/kvm runs Linux,
`pykvm lab --` can be left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from argparse import Namespace
from functools import partial

from measure import BUILD, Bar, Samples, interleaved, main, options, ratio, table

from pykvm.boot.guestimage import default_initrd
from pykvm.config import CMDLINE_DEFAULT, CMDLINE_VIRTIO

TIMEOUT_S = 300
MESSAGES = 64
TIMES = {"serial": 1, "hvc0": 4}  # how often the text is written
ALL_MESSAGES = "printk.devkmsg=on"  # else a program may write ten in five seconds
SCRIPT = """
b=/bin/busybox
now() {{ read up idle </proc/uptime; echo at $up; }}
now
i=0
while [ $i -lt {times} ]; do $b cat /text; i=$((i+1)); done
now
i=0
while [ $i -lt {messages} ]; do echo "<1>{line}" >/dev/kmsg; i=$((i+1)); done
now
"""
QEMU = [
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
    *("-M", "q35", "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", "256M"),
    *("-device", "isa-debug-exit,iobase=0x5f8,iosize=1"),
]


def figures(times: int, *words: object) -> tuple[float, float]:
    """Run a command line that boots the guest: milliseconds for the text, and for the messages."""
    command = [str(word) for word in words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    ups = [float(up) * 1e3 for up in re.findall(rb"^at ([\d.]+)", done.stdout, re.MULTILINE)]
    if len(ups) != 3:
        sys.exit(f"{' '.join(command)}: {done.stdout[-2000:]!r} {done.stderr.decode()}")
    return (ups[1] - ups[0]) / times, ups[2] - ups[1]


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """Two tables."""
    line = "x" * 99
    (BUILD / "text").write_text(f"{line}\n" * (args.kib * 1024 // 100))
    command, modules = ["/bin/busybox", "sh", "/script"], ["virtio_pci", "virtio_console"]
    for name, times in TIMES.items():
        script = BUILD / f"{name}.sh"
        script.write_text(SCRIPT.format(messages=MESSAGES, line=line, times=times))
        add = ["/bin/busybox", f"{BUILD}/text:/text", f"{script}:/script"]
        terminal = name if name == "hvc0" else ""
        archive = default_initrd(args.kernel, command, add, modules, console=terminal)
        (BUILD / name).write_bytes(archive)
    pykvm = [os.path.join(sysconfig.get_path("scripts"), "pykvm"), "boot", args.kernel]
    qemu = [*QEMU, "-kernel", args.kernel]
    on_serial, on_hvc0 = (f"{line} {ALL_MESSAGES}" for line in (CMDLINE_DEFAULT, CMDLINE_VIRTIO))
    serial = ["--initrd", BUILD / "serial", "--append", on_serial]
    hvc0 = ["--initrd", BUILD / "hvc0", "--append", on_hvc0, "--console", "virtio"]
    qemu_serial = ["-initrd", BUILD / "serial", "-append", on_serial, "-serial", "stdio"]
    qemu_hvc0 = ["-initrd", BUILD / "hvc0", "-append", on_hvc0, "-device"]
    qemu_hvc0 += ["virtio-serial-pci", "-chardev", "stdio,id=c", "-device", "virtconsole,chardev=c"]
    rivals = {
        "pykvm, hvc0": partial(figures, TIMES["hvc0"], *pykvm, *hvc0),
        "pykvm, serial": partial(figures, TIMES["serial"], *pykvm, *serial),
        "QEMU, hvc0": partial(figures, TIMES["hvc0"], *qemu, *qemu_hvc0),
        "QEMU, serial": partial(figures, TIMES["serial"], *qemu, *qemu_serial),
    }
    text, messages = interleaved(rivals, args.rounds, warm=False)
    table(f"{args.kib} KiB of a program's, ms", text, "pykvm, hvc0")
    table(f"{MESSAGES} messages of the kernel's, ms", messages, "pykvm, hvc0")
    bars = [
        Bar("text by hvc0, of serial", ratio(text, "pykvm, hvc0", "pykvm, serial"), 0.5),
        Bar("messages by hvc0, of serial", ratio(messages, "pykvm, hvc0", "pykvm, serial"), 1),
        Bar("text by hvc0, of QEMU's hvc0", ratio(text, "pykvm, hvc0", "QEMU, hvc0"), 1),
    ]
    return {"text": text, "messages": messages}, bars


if __name__ == "__main__":
    parser = options(__doc__.partition("\n")[0], rounds=3)
    parser.add_argument("kernel", metavar="KERNEL")
    parser.add_argument("--kib", type=int, default=32, help="of text; default: 32")
    main(parser, run)
