"""Stock Debian kernels use their network cards, in the lab: by a TAP, by passt, by a socket."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

SIZE = 8 << 20

# In the guest: $1 is the host. It says what it saw, the sum of what it fetched, and what the host
# says is the sum of what it sent. passt of 2023 keeps open what the guest half closed and the host
# closed after it, so nobody waits for that.
GUEST = """
busybox ping -c 2 -q -s 65000 $1 && echo long pings are answered
busybox wget -q -O /data http://$1:8000/data
echo sum $(busybox md5sum < /data)
busybox nc $1 9000 < /data > /sum &
until [ -s /sum ]; do busybox usleep 100000; done
kill $!
echo sum $(busybox cat /sum)
echo name server $(busybox cat /etc/resolv.conf)
"""

# In the lab, in a network namespace of its own: the server, then the guest, by each of the wires.
LAB = """
set -e
ip link set lo up
head -c {size} /dev/urandom > /tmp/data
echo made $(busybox md5sum < /tmp/data)
busybox httpd -p 8000 -h /tmp
busybox nc -ll -p 9000 -e busybox md5sum &
boot="$1 -m pykvm boot $2 -c 2 --timeout 200 --add /bin/busybox --add $3:/guest"
$boot --net tap=tap0,queues=2,ip=10.9.0.2/24,gw=10.9.0.1,hostip=10.9.0.1/24,dns=10.9.0.9 \
    -- busybox sh /guest 10.9.0.1
ip link show tap0 2>/dev/null || echo no TAP is left
$boot --transport mmio --net user -- busybox sh /guest 10.0.2.2
"""


def test_a_stock_kernel_uses_the_network(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path: Path,
) -> None:
    import sys

    (tmp_path / "guest").write_text(GUEST)
    (tmp_path / "lab").write_text(LAB.format(size=SIZE))
    words = ["unshare", "--net", "sh", str(tmp_path / "lab"), sys.executable]
    words += [debian_kernel("6.12-cloud"), str(tmp_path / "guest")]
    done = in_lab(words, writable=[str(tmp_path)])
    said = done.stdout.decode().splitlines()
    (made,) = (line.split()[1] for line in said if line.startswith("made "))
    assert [line.split()[1] for line in said if line.startswith("sum ")] == [made] * 4
    assert "long pings are answered" in said  # by the TAP; passt may not be allowed to send any
    assert "name server nameserver 10.9.0.9" in said
    assert "name server nameserver 10.0.2.3" in said
    assert "no TAP is left" in said
