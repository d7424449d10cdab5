"""Guests' networks through TAPs or passt: pykvm beside QEMU's microvm and q35.

    pykvm lab -- python bench/net.py KERNEL [--wire tap|user] [--cpus N] [--rounds N] [--json FILE]

All run at once and sleep, with the same kernel and initrd (pykvm's own init, busybox, iperf3), each
on a TAP or a passt of its own; the host measures one after the other, in turn: TCP and UDP both
ways, and how long a byte takes to the guest and back. Of UDP, what arrives counts when the sender
sends what it can. Each is a second or less, and the better quartile counts: a busy machine has
quiet seconds. The bars are QEMU's with vhost=off, whose frames go through a process as pykvm's do;
where the host has vhost-net, it is shown beside them. QEMU's passts are started as pykvm's are.

With a TAP, what the kernel counts meanwhile says why: what the card takes and gives, how long
frames are, and how many exits and interrupts there are for each (/sys/kernel/debug/kvm). Of a flood
of UDP the card may take more than the guest, which has no time left to receive it. Needs root,
iperf3, busybox, and passt for --wire user; where /dev/kvm runs Linux, `pykvm lab --` can be left
out.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from boot import QEMU
from measure import BUILD, Bar, Samples, interleaved, main, options, quiet, table

from pykvm.boot.guestimage import default_initrd
from pykvm.boot.modules import KINDS, TRANSPORTS
from pykvm.net.passt import READY, SOCKET_BUFFER, command
from pykvm.virtio.config.net import USER_MTU, parse_net

MEMORY_MIB = 256
CMDLINE = "console=ttyS0 quiet panic=-1"
BOOT_S, ANSWER_S = 120, 60
IPERF, ECHO = 5201, 7  # ports of the guest
FORWARDED = 7000  # and the host's, behind passt: two a guest
SCRIPT = f"""
mkdir -p /tmp
busybox nc -ll -p {ECHO} -e busybox cat &
iperf3 -s >/dev/null
"""
SECONDS = 1  # of one TCP measurement, after one that is not counted
BYTES = 50  # one after the other, for the latency
MACHINES = {  # words, device
    "QEMU q35": (("-M", "q35"), "virtio-net-pci,romfile="),
    "QEMU microvm": (("-M", "microvm,rtc=on"), "virtio-net-device"),
}
VHOST = ", vhost"
UDP = ("-u", "-b", "0")
TITLES: tuple[str, ...] = (
    *("TCP to the guest, Mb/s", "TCP to the host, Mb/s"),
    *("UDP to the guest, Mb/s", "UDP to the host, Mb/s"),
    "a byte and back, ms",
)
COUNTED: tuple[str, ...] = tuple(
    f"{title.partition(',')[0]}, {what}"
    for title in TITLES[:4]
    for what in (
        "Mb/s by the card",
        *(f"{what} a frame" for what in ("bytes", "exits", "interrupts")),
    )
)
DEBUGFS, INTERFACES = Path("/sys/kernel/debug"), Path("/sys/class/net")


class Address(NamedTuple):
    """Where the host finds a guest, and its TAP, if it has one."""

    host: str
    iperf: int
    echo: int
    tap: str = ""


class Guest(NamedTuple):
    """A machine that answers."""

    address: Address
    pid: int


def rate(address: Address, *words: str) -> float:
    """Megabits a second that arrive."""
    line = ["iperf3", "-c", address.host, "-p", str(address.iperf), "-J", "-O", "1", *words]
    done = subprocess.run([*line, "-t", str(SECONDS)], capture_output=True, timeout=ANSWER_S)
    result = json.loads(done.stdout)
    if "error" in result:
        sys.exit(f"{' '.join(line)}: {result['error']}")
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e6


def latency_ms(address: Address) -> float:
    """The median of what a byte takes to the guest and back."""
    times = []
    with socket.create_connection((address.host, address.echo), timeout=ANSWER_S) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(BYTES):
            started = time.perf_counter()
            end.sendall(b"x")
            if not end.recv(1):
                raise ConnectionError
            times.append(time.perf_counter() - started)
    return median(times) * 1e3


def counters(guest: Guest) -> tuple[int, ...]:
    """Frames and bytes through the TAP, both ways together; exits and interrupts of the guest."""
    tap = INTERFACES / guest.address.tap / "statistics"
    (vm,) = DEBUGFS.glob(f"kvm/{guest.pid}-*")
    both = ([tap / f"{way}_{what}" for way in ("rx", "tx")] for what in ("packets", "bytes"))
    files = [*both, [vm / "exits"], [vm / "irq_injections"]]
    return tuple(sum(int(file.read_text()) for file in row) for row in files)


def figures(guest: Guest) -> tuple[float, ...]:
    """What is measured in a round: `TITLES`, and `COUNTED` with a TAP."""
    rates: list[float] = []
    counted: list[float] = []
    for words in ((), ("-R",), UDP, (*UDP, "-R")):
        before = counters(guest) if guest.address.tap else ()
        started = time.perf_counter()
        rates.append(rate(guest.address, *words))
        if guest.address.tap:
            frames, *others = (b - a for a, b in zip(before, counters(guest), strict=True))
            counted.append(others[0] * 8 / 1e6 / (time.perf_counter() - started))
            counted += [other / frames for other in others]
    return *rates, latency_ms(guest.address), *counted


def wait_for(address: Address) -> Address:
    """Returns once the guest answers."""
    deadline = time.monotonic() + BOOT_S
    while True:
        try:
            latency_ms(address)
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"the guest at {address} does not answer")
            time.sleep(0.5)
        else:
            return address


@contextmanager
def running(line: Sequence[object], fds: Sequence[int] = ()) -> Iterator[int]:
    """A machine, while the host measures: its process."""
    words = [str(word) for word in line]
    null = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=null, stdout=null, pass_fds=fds) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


@contextmanager
def passt(spec: str) -> Iterator[socket.socket]:
    """One of QEMU's own, as pykvm starts it."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    with theirs:
        process = subprocess.Popen(
            command(parse_net(spec), theirs.fileno()),
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    with process, ours:
        next(line for line in process.stderr or () if line.startswith(READY))
        yield ours


def cable(wire: str, number: int, stack: ExitStack) -> tuple[str, Address]:
    """What ``--net`` is given for guest `number`, and where it will be found."""
    if wire == "user":
        iperf, echo = FORWARDED + 2 * number, FORWARDED + 2 * number + 1
        forwards = f"hostfwd=tcp:{iperf}-:{IPERF},hostfwd=udp:{iperf}-:{IPERF}"
        forwards += f",hostfwd=tcp:{echo}-:{ECHO}"
        return f"user,{forwards}", Address("127.0.0.1", iperf, echo)
    tap, network = f"pykvmbench{number}", f"10.9.{number}"
    for line in (
        f"ip tuntap add {tap} mode tap",
        f"ip addr add {network}.1/24 dev {tap}",
        f"ip link set {tap} up",
    ):
        subprocess.run(line.split(), check=True)
    stack.callback(subprocess.run, ["ip", "link", "del", tap], check=False)
    return f"tap={tap},ip={network}.2/24", Address(f"{network}.2", IPERF, ECHO, tap)


def initrd(kernel: str, net: str) -> Path:
    """pykvm's own, the same for all but for the guest's address."""
    script, archive = BUILD / "script", BUILD / f"initrd {net.partition(',')[0]}"
    script.write_text(SCRIPT)
    add = ["/bin/busybox", "/usr/bin/iperf3", f"{script}:/script"]
    modules = [*TRANSPORTS.values(), *KINDS["net"]]
    words = ["busybox", "sh", "/script"]
    archive.write_bytes(default_initrd(kernel, words, add, modules, [parse_net(net)]))
    return archive


def start_pykvm(args: Namespace, transport: str, number: int, stack: ExitStack) -> Guest:
    """Boot a guest of pykvm's."""
    net, address = cable(args.wire, number, stack)
    line = [os.path.join(sysconfig.get_path("scripts"), "pykvm"), "boot", args.kernel]
    line += ["--initrd", str(initrd(args.kernel, net)), "--append", CMDLINE, "--any-host"]
    line += ["-m", f"{MEMORY_MIB}M", "-c", args.cpus, "--net", net, "--transport", transport]
    pid = stack.enter_context(running(line))
    return Guest(wait_for(address), pid)


def start_qemu(args: Namespace, name: str, number: int, stack: ExitStack) -> Guest:
    """Boot a guest of QEMU's, with the MTU that pykvm would tell it."""
    net, address = cable(args.wire, number, stack)
    words, device = MACHINES[name.removesuffix(VHOST)]
    line = [*QEMU, *words, "-kernel", args.kernel, "-initrd", initrd(args.kernel, net)]
    line += ["-append", CMDLINE, "-m", MEMORY_MIB, "-smp", args.cpus]
    if args.wire == "user":
        fd = stack.enter_context(passt(net)).fileno()
        line += ["-netdev", f"stream,id=n,addr.type=fd,addr.str={fd}"]
        line += ["-device", f"{device},netdev=n,host_mtu={USER_MTU}"]
        pid = stack.enter_context(running(line, [fd]))
    else:
        tap = parse_net(net).where
        vhost = "on" if name.endswith(VHOST) else "off"
        line += ["-netdev", f"tap,id=n,ifname={tap},script=no,downscript=no,vhost={vhost}"]
        line += ["-device", f"{device},netdev=n"]
        pid = stack.enter_context(running(line))
    return Guest(wait_for(address), pid)


def times(title: str, values: list[float]) -> list[float]:
    """What grows when something is slow."""
    return values if title.endswith("ms") else [1 / value for value in values]


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """A table for each of `TITLES`, and of `COUNTED` with a TAP."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    titles, rivals = TITLES, list(MACHINES)
    if args.wire == "tap":
        titles += COUNTED
        if not (DEBUGFS / "kvm").exists():
            subprocess.run(["mount", "-t", "debugfs", "debugfs", str(DEBUGFS)], check=True)
        if os.path.exists("/dev/vhost-net"):
            rivals.append("QEMU q35" + VHOST)
    with ExitStack() as stack:
        guests = {
            "pykvm, pci": start_pykvm(args, "pci", 0, stack),
            "pykvm, mmio": start_pykvm(args, "mmio", 1, stack),
            **{name: start_qemu(args, name, 2 + i, stack) for i, name in enumerate(rivals)},
        }
        measures = {name: partial(figures, guest) for name, guest in guests.items()}
        found = interleaved(measures, args.rounds, warm=False)
    bars = []
    for title, samples in zip(titles, found, strict=True):
        table(title, samples, "pykvm, pci")
        if title in COUNTED:
            continue
        for name, rival in (("pykvm, pci", "QEMU q35"), ("pykvm, mmio", "QEMU microvm")):
            ours, theirs = (quiet(times(title, samples[key])) for key in (name, rival))
            bars.append(Bar(f"{title}: {rival}'s speed / {name}'s", ours / theirs, 1.0))
    return dict(zip(titles, found, strict=True)), bars


if __name__ == "__main__":
    parser = options("Guests' networks through TAPs or passt.", rounds=3)
    parser.add_argument("kernel", metavar="KERNEL", help="a bzImage")
    parser.add_argument("--wire", choices=("tap", "user"), default="tap", help="default: tap")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="default: 1")
    main(parser, run)
