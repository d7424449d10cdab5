"""A guest's network through a TAP: pykvm beside QEMU's microvm and q35.

    pykvm lab -- python bench/net.py KERNEL [--cpus N] [--rounds N] [--json FILE]

All boot the same kernel with the same initrd (pykvm's own init, busybox, iperf3) on the same TAP,
and measure against the host: TCP both ways, and how long a ping takes. Needs root, iperf3 and
busybox; where /dev/kvm runs Linux, `pykvm lab --` can be left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from argparse import Namespace
from functools import partial

from boot import QEMU
from measure import BUILD, Bar, Samples, interleaved, main, options, ratio, table

from pykvm.boot.guestimage import default_initrd
from pykvm.boot.modules import KINDS, TRANSPORTS
from pykvm.virtio.config.net import parse_net

TAP = "pykvmbench"
HOST, GUEST = "10.9.0.1", "10.9.0.2/24"
MEMORY_MIB = 512
CMDLINE = "console=ttyS0 quiet panic=-1"
TIMEOUT_S = 300
SCRIPT = f"""
mkdir -p /tmp
iperf3 -c {HOST} -t 4 -O 1 -f m | grep receiver
iperf3 -c {HOST} -t 4 -O 1 -f m -R | grep receiver
busybox ping -q -c 50 -i 0.02 {HOST}
"""
QEMU_PCI = ("-M", "q35", "-device", "virtio-net-pci,netdev=n,romfile=")
QEMU_MMIO = ("-M", "microvm,rtc=on", "-device", "virtio-net-device,netdev=n")
TITLES = ("TCP to the host, Mb/s", "TCP to the guest, Mb/s", "ping, ms")


def figures(*words: object) -> tuple[float, ...]:
    """Run a guest: megabits a second each way, milliseconds of a ping."""
    command = [str(word) for word in words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    rates = re.findall(rb"([\d.]+) Mbits/sec", done.stdout)
    ping = re.search(rb"min/avg/max = [\d.]+/([\d.]+)/", done.stdout)
    if len(rates) != 2 or ping is None:
        sys.exit(f"{' '.join(command)}: {done.stdout!r} {done.stderr.decode()}")
    return (*map(float, rates), float(ping[1]))


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """Three tables."""
    script, archive = BUILD / "script", BUILD / "initrd"
    script.write_text(SCRIPT)
    archive.write_bytes(
        default_initrd(
            args.kernel,
            ["busybox", "sh", "/script"],
            ["/bin/busybox", "/usr/bin/iperf3", f"{script}:/script"],
            [*TRANSPORTS.values(), *KINDS["net"]],
            [parse_net(f"tap={TAP},ip={GUEST}")],
        )
    )
    pykvm = [os.path.join(sysconfig.get_path("scripts"), "pykvm"), "boot", args.kernel]
    pykvm += ["--initrd", archive, "--append", CMDLINE, "-m", f"{MEMORY_MIB}M", "-c", args.cpus]
    qemu = [*QEMU, "-kernel", args.kernel, "-initrd", archive, "-append", CMDLINE]
    qemu += ["-m", MEMORY_MIB, "-smp", args.cpus]
    qemu += ["-netdev", f"tap,id=n,ifname={TAP},script=no,downscript=no,vhost=off"]
    rivals = {
        "pykvm, pci": partial(figures, *pykvm, "--net", f"tap={TAP}"),
        "pykvm, mmio": partial(figures, *pykvm, "--net", f"tap={TAP}", "--transport", "mmio"),
        "QEMU q35": partial(figures, *qemu, *QEMU_PCI),
        "QEMU microvm": partial(figures, *qemu, *QEMU_MMIO),
    }
    with subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL) as server:
        try:
            for words in (
                f"ip tuntap add {TAP} mode tap",
                f"ip addr add {HOST}/24 dev {TAP}",
                f"ip link set {TAP} up",
            ):
                subprocess.run(words.split(), check=True)
            found = interleaved(rivals, args.rounds)
        finally:
            server.terminate()
            subprocess.run(["ip", "link", "del", TAP], check=False)
    bars = []
    for title, samples in zip(TITLES, found, strict=True):
        table(title, samples, "pykvm, pci")
        for name, rival in (("pykvm, pci", "QEMU q35"), ("pykvm, mmio", "QEMU microvm")):
            what = ratio(samples, name, rival)
            slower = what if title.startswith("ping") else 1 / what
            bars.append(Bar(f"{title}: {rival}'s speed / {name}'s", slower, 1.0))
    return dict(zip(TITLES, found, strict=True)), bars


if __name__ == "__main__":
    parser = options("A guest's network through a TAP.", rounds=3)
    parser.add_argument("kernel", metavar="KERNEL", help="a bzImage")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="default: 1")
    main(parser, run)
