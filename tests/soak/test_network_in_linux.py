"""Two machines on one cable, one of them QEMU's or both pykvm's, and what comes through."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pykvm.boot.guestimage import default_initrd
from pykvm.boot.kernels import fetch
from pykvm.boot.modules import KINDS, TRANSPORTS
from pykvm.lab import Lab
from pykvm.virtio.config.net import parse_net

LIMIT_S = 600
CMDLINE = "console=ttyS0 quiet panic=-1"
ADD = ("/bin/busybox", "/usr/bin/iperf3")

# Until the other one says that all is done.
SERVER = """
mkdir -p /tmp
iperf3 -s >/dev/null &
busybox nc -l -p 9 >/dev/null
"""

CLIENT = """
mkdir -p /tmp
until iperf3 -c 10.9.0.2 -t 1 >/dev/null 2>&1; do busybox usleep 200000; done
measure() { echo "= $*"; iperf3 -c 10.9.0.2 -f k -t 3 "$@" | busybox grep receiver; }
measure
measure -R
measure -u -b 20M
measure -u -b 20M -R
busybox ping -q -c 5 -i 0.2 -s 65000 10.9.0.2
echo . | busybox nc 10.9.0.2 9
echo done
"""

QEMU = (
    "qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -accel kvm -display none "
    "-cpu host,-arch-capabilities -serial stdio -M q35 -m 512 "
    "-device virtio-net-pci,netdev=n,romfile="
)

# $1 is Python, $2 the kernel, $3 the folder with initrds and scripts.
BRIDGE = """
set -e
rm -f /tmp/cable /tmp/ours
ip link set lo up
for old in br0 q0; do ip link del $old 2>/dev/null || true; done
ip link add br0 type bridge
ip link set br0 up
pykvm="$1 -m pykvm boot $2 --any-host --timeout 300"
qemu() {{ {qemu} -kernel $2 -initrd $3/initrd -append "{cmdline}" -netdev $1 >$3/said; }}
"""
ENDS = {
    "pykvm, bridge": (
        "$pykvm --net bridge=br0 --initrd $3/initrd >$3/said 2>&1 &",
        "bridge=br0,ip=10.9.0.1/24",
    ),
    "QEMU, bridge": (
        "ip tuntap add q0 mode tap; ip link set q0 master br0 up; "
        "qemu tap,id=n,ifname=q0,script=no,downscript=no $2 $3 &",
        "bridge=br0,ip=10.9.0.1/24",
    ),
    "QEMU, socket": (
        "qemu stream,id=n,server=on,addr.type=unix,addr.path=/tmp/cable $2 $3 & "
        "until [ -S /tmp/cable ]; do sleep 0.1; done",
        "socket=/tmp/cable,ip=10.9.0.1/24",
    ),
    "QEMU, socket, datagrams": (
        "qemu dgram,id=n,local.type=unix,local.path=/tmp/cable,remote.type=unix,"
        "remote.path=/tmp/ours $2 $3 & until [ -S /tmp/cable ]; do sleep 0.1; done",
        "socket=/tmp/ours,peer=/tmp/cable,ip=10.9.0.1/24",
    ),
}


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("end", ENDS)
def test_two_guests_send_both_ways(lab: Lab, tmp_path: Path, end: str, transport: str) -> None:
    kernel = str(fetch("6.12-cloud").image)
    (tmp_path / "server").write_text(SERVER)
    (tmp_path / "client").write_text(CLIENT)
    (tmp_path / "initrd").write_bytes(
        default_initrd(
            kernel,
            ["busybox", "sh", "/server"],
            [*ADD, f"{tmp_path}/server:/server"],
            [*TRANSPORTS.values(), *KINDS["net"]],
            [parse_net("tap=t,ip=10.9.0.2/24")],
        )
    )
    start, net = ENDS[end]
    script = BRIDGE.format(qemu=QEMU, cmdline=CMDLINE) + start + "\n"
    script += f"$pykvm --transport {transport} --net {net} --append '{CMDLINE}' -c 2 --add "
    script += " --add ".join([*ADD, "$3/client:/client"]) + " -- busybox sh /client; wait\n"
    (tmp_path / "script").write_text(script)
    words = ["sh", str(tmp_path / "script"), sys.executable, kernel, str(tmp_path)]
    done = lab.run(words, timeout=LIMIT_S, writable=[str(tmp_path)])
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, said
    assert "done" in said
    rates = re.findall(r"([\d.]+) Kbits/sec", said)
    print(end, transport, rates)
    assert len(rates) == 4, said
    assert all(float(rate) > 100 for rate in rates)  # it is no benchmark; the host may be busy
    assert "5 packets received, 0% packet loss" in said


FETCH = """
set -e
ip link set lo up
head -c 100000000 /dev/urandom > /tmp/data
echo made $(md5sum < /tmp/data)
busybox httpd -p 8000 -h /tmp
get="echo got \\$(busybox wget -q -O - http://$5:8000/data | busybox md5sum)"
boot="$1 -m pykvm boot $2 --any-host --timeout 280 -m 512M --transport $3 --add /bin/busybox"
for net in $4; do
    $boot --net $net -- busybox sh -c "$get"
done
"""


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize(
    ("wire", "host"),
    [("tap=t0,ip=10.9.0.2/24,hostip=10.9.0.1/24", "10.9.0.1"), ("user", "10.0.2.2")],
)
def test_100_mb_arrive_with_and_without_offloads(
    lab: Lab, tmp_path: Path, wire: str, host: str, transport: str
) -> None:
    (tmp_path / "script").write_text(FETCH)
    kernel = str(fetch("6.12-cloud").image)
    words = ["sh", str(tmp_path / "script"), sys.executable, kernel, transport]
    words += [f"{wire} {wire},offload=off", host]
    done = lab.run(words, timeout=LIMIT_S, writable=[str(tmp_path)])
    said = done.stdout.decode(errors="replace")
    sums = re.findall(r"(?:made|got) (\w+)", said)
    assert done.returncode == 0, (said, done.stderr)
    assert len(sums) == 3
    assert len(set(sums)) == 1


FLOOD = """
ip link set lo up
iperf3 -s >/dev/null &
$1 -m pykvm boot $2 --any-host --timeout 280 -m 512M --transport $3 -c 2 --net user \\
    --add /bin/busybox --add /usr/bin/iperf3 -- busybox sh -c "$4"
"""

IN_FLOOD = """
mkdir -p /tmp
for round in 1 2 3 4 5 6 7 8 9 10; do iperf3 -c 10.0.2.2 -u -b 0 -t 3 -R | grep receiver; done
echo alive
"""


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_flood_of_datagrams_from_passt_is_survived(lab: Lab, transport: str) -> None:
    kernel = str(fetch("6.12-cloud").image)
    words = ["sh", "-c", FLOOD, "sh", sys.executable, kernel, transport, IN_FLOOD]
    done = lab.run(words, timeout=LIMIT_S)
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, said
    assert said.count("receiver") == 10
    assert "alive" in said
