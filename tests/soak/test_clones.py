"""What is under way when a stock kernel's machine is saved: TCP behind passt, and fio --verify."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from stock import tool

from pykvm.boot.kernels import fetch
from pykvm.lab import Lab

LIMIT_S = 850
LINUX = Path(__file__).resolve().parents[1] / "linux"

# $1 python, $2 kernel, $3 the compiled clone.c, $4 transport, $5 CPUs.
PASST = """
set -e
rm -rf /tmp/clones
mkdir /tmp/clones
cd /tmp/clones
ip link set lo up
$1 LINUX/echoserver.py v_6000 &
truncate -s 2M disk
pykvm="timeout 300 $1 -m pykvm"
$pykvm boot $2 --transport $4 -c $5 --timeout 250 --net user --vsock v --disk disk --rng --balloon \
    --snapshot saved --snapshot-disks --add $3:/clone -- /clone 10.0.2.2
for clock in stay step; do
    $pykvm restore --timeout 200 --clock $clock saved
done
"""

FIO = """
mkdir -p /tmp
fio --name=v --filename=/dev/vda --size=16M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 \
    --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --eta=never --output=/tmp/out &
busybox sleep 2
busybox test -d /proc/$! && echo under way
busybox sleep 1
wait $!
echo fio $?
"""

# $1 python, $2 kernel, $3 the script above, $4 transport, $5 CPUs, $6 fio.
VERIFY = """
set -e
rm -rf /tmp/clones
mkdir /tmp/clones
cd /tmp/clones
truncate -s 16M disk
pykvm="timeout 300 $1 -m pykvm"
$pykvm boot $2 --transport $4 -c $5 -m 1G --timeout 250 --disk disk --snapshot-disks \
    --snapshot-at 'console:^under way' saved --add /bin/busybox --add $6 --add $3:/script \
    -- busybox sh /script
for clock in stay step; do
    $pykvm restore --timeout 200 --clock $clock saved
done
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/linux/clone.c, compiled."""
    target = tmp_path_factory.mktemp("guest") / "clone"
    command = ["gcc", "-O1", "-static", "-o", str(target), str(LINUX / "clone.c")]
    subprocess.run(command, check=True, timeout=60)
    return target


@pytest.mark.parametrize(("transport", "cpus"), [("mmio", "1"), ("pci", "2")])
def test_connections_through_passt_are_reset(
    lab: Lab, clone: Path, tmp_path: Path, transport: str, cpus: str
) -> None:
    (tmp_path / "lab").write_text(PASST.replace("LINUX", str(LINUX)))
    kernel = str(fetch("6.12-cloud").image)
    words = ["sh", str(tmp_path / "lab"), sys.executable, kernel, str(clone), transport, cpus]
    done = lab.run(words, timeout=LIMIT_S)
    said = done.stdout.decode().replace("\r", "")
    assert done.returncode == 0, said + done.stderr.decode()
    assert said.count("saved: tcp echoed") == said.count("saved: vsock echoed") == 1, said
    assert said.count("copy: tcp Connection reset by peer") == 2, said
    assert said.count("copy: new tcp echoed") == said.count("copy: new vsock echoed") == 2, said
    assert said.count("disk as written") == 2, said


@pytest.mark.parametrize(("transport", "cpus"), [("pci", "2"), ("mmio", "1")])
def test_what_fio_writes_across_a_snapshot_it_finds(
    lab: Lab, tmp_path: Path, transport: str, cpus: str
) -> None:
    (tmp_path / "lab").write_text(VERIFY)
    (tmp_path / "script").write_text(FIO)
    kernel = str(fetch("6.12-cloud").image)
    words = ["sh", str(tmp_path / "lab"), sys.executable, kernel, str(tmp_path / "script")]
    done = lab.run([*words, transport, cpus, tool("fio")], timeout=LIMIT_S)
    said = done.stdout.decode().replace("\r", "")
    assert done.returncode == 0, said + done.stderr.decode()
    assert re.findall(r"fio (\d+)", said) == ["0"] * 3, said
    assert said.count("under way") == 1, said  # it was, and the copies had gone on from there
