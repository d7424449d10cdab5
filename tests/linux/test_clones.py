"""Copies of a stock kernel's machine, whose devices were in use when it was saved; in the lab."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent

# In a network namespace of its own. $1 python, $2 kernel, $3 the compiled clone.c.
LAB = """
set -e
rm -rf /tmp/clones
mkdir /tmp/clones
cd /tmp/clones
ip link set lo up
ip link add br0 address 02:00:00:00:00:fe type bridge forward_delay 0
ip addr add 10.9.0.1/24 dev br0
ip link set br0 up
$1 HERE/echoserver.py v_6000 v1_6000 v2_6000 &
truncate -s 2M disk
pykvm="timeout 200 $1 -m pykvm"
$pykvm boot $2 -c 2 --timeout 150 --net bridge=br0,ip=10.9.0.2/24 --vsock v --disk disk \
    --rng --balloon --snapshot saved --snapshot-disks --add $3:/clone -- /clone 10.9.0.1 4
echo restored with its identity
$pykvm restore --timeout 100 --identity keep saved
echo restored twice at once
$pykvm restore --timeout 100 --serial file:one --vsock v1 --clock step \
    --net bridge=br0,ip=10.9.0.3/24 saved &
one=$!
$pykvm restore --timeout 100 --serial file:two --vsock v2 \
    --net eth0=bridge=br0,ip=10.9.0.4/24 saved &
two=$!
for file in one two; do
    timeout 60 sh -c "until grep -q 'new tcp' $file; do sleep 1; done"
done
for ip in 10.9.0.3 10.9.0.4; do
    busybox ping -c 1 -W 20 -q $ip >/dev/null && echo $ip answers
done
wait $one && wait $two && cat one two
"""


def test_copies_go_on_with_their_devices_and_have_addresses_of_their_own(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path: Path,
) -> None:
    clone = tmp_path / "clone"
    subprocess.run(
        ["gcc", "-O1", "-static", "-o", str(clone), str(HERE / "clone.c")], check=True, timeout=60
    )
    (tmp_path / "lab").write_text(LAB.replace("HERE", str(HERE)))
    words = ["unshare", "--net", "sh", str(tmp_path / "lab"), sys.executable]
    done = in_lab([*words, debian_kernel("6.12-cloud"), str(clone)])
    said = done.stdout.decode().replace("\r", "")
    booted, rest = said.split("restored with its identity")
    kept, copies = rest.split("restored twice at once")

    # The first machine goes on, and ends in the middle of it all.
    for line in ("tcp echoed", "vsock echoed", "saved: tcp echoed", "saved: vsock echoed"):
        assert re.search(f"^{line}$", booted, re.MULTILINE), said
    assert "copy" not in booted

    # The one that takes its place has its connection, and not those by vsock.
    assert "copy 1: monotonic +" in kept, said
    for line in ("copy: tcp echoed", "copy: new tcp echoed", "copy: new vsock echoed"):
        assert line in kept, said
    assert re.search("copy: vsock (Connection reset|Transport endpoint is not)", kept), said
    assert kept.count("disk as written") == 1, said

    # The others are others.
    assert copies.count("disk as written") == 2, said
    assert copies.count("copy: new tcp echoed") == copies.count("copy: new vsock echoed") == 2, said
    assert {"10.9.0.3 answers", "10.9.0.4 answers"} <= set(copies.splitlines()), said
    found = re.findall(r"mac (\S+) ip (\S+) cid (\d+)", said)
    assert len(found) == 4
    assert found[0] == found[1]
    for names in zip(*found[1:], strict=True):  # MACs, addresses, CIDs
        assert len(set(names)) == 3, said
    assert [ip for _, ip, _ in found[1:]] == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]

    # Time stays, or steps over what has passed; the guest sleeps by it, and no watchdog bites.
    times = re.findall(r"monotonic \+([\d.]+) real \+([\d.]+) slept ([\d.]+)", said)
    away = [float(monotonic) for monotonic, _, _ in times]
    assert away[1] > max(away[0], away[2])
    for monotonic, real, slept in times:
        assert abs(float(monotonic) - float(real)) < 1
        assert float(slept) >= 1
    assert "stall" not in said
