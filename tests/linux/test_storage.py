"""A guest in the lab whose root is a partition, with a qcow2 disk and shared folders, in one boot.

What serves them is killed under it: the guest sees errors and goes on. See storage.c.
"""

from __future__ import annotations

import operator
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
BOOT_S = 150  # an emulated machine inside a busy one
MIBS, OPERATIONS = 16, 300  # what the guest writes, and how often it changes a file at random
SOUND = 7
SECTOR, FIRST_SECTOR = 512, 2048  # of the root's partition

# Ends what the guest asks to be ended. A pattern is what a program's own command line starts with.
KILL = r"""
cd "$1"; shift
while read -r line; do
    echo "$line"
    case "$line" in
    "end virtiofsd"*) pkill -KILL -f '^[^ ]*virtiofsd .*/share[, ]' ;;
    "end qemu-storage-daemon"*) pkill -KILL -f '^[^ ]*qemu-storage-daemon .*victim' ;;
    esac
done < pipe &
"$@" </dev/null >pipe
code=$?
wait
! pgrep -f '^[^ ]*(virtiofsd|qemu-storage-daemon) .*'"$PWD" || echo "something is left"
exit $code
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The guest's root and disks, and the folders that it shares."""
    tree = tmp_path / "tree"
    for name in ("bin", "dev", "mnt", "proc", "run", "sys"):
        (tree / name).mkdir(parents=True)
    program = [str(tree / "bin/storage"), str(HERE / "storage.c")]
    subprocess.run(["gcc", "-O1", "-static", "-o", *program], check=True, timeout=60)
    for name in ("share", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hello").write_text("from the host\n")

    def run(command: str) -> None:
        subprocess.run(shlex.split(command), check=True, timeout=60, cwd=tmp_path)

    run("/usr/sbin/mke2fs -q -t ext4 -d tree root.part 32M")
    part = (tmp_path / "root.part").read_bytes()
    entry = struct.pack("<4xB3xII", 0x83, FIRST_SECTOR, len(part) // SECTOR)
    table = (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"
    (tmp_path / "root.img").write_bytes(table.ljust(FIRST_SECTOR * SECTOR, b"\0") + part)
    run("/usr/sbin/mke2fs -q -t ext4 disk.img 64M")
    run("qemu-img convert -O qcow2 disk.img disk.qcow2")
    run("qemu-img create -q -f qcow2 victim.qcow2 1M")
    run("mkfifo pipe")
    return tmp_path


def test_a_guest_lives_on_disks_and_folders_and_survives_their_loss(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    folder: Path,
) -> None:
    boot = [sys.executable, "-m", "pykvm", "boot", debian_kernel("6.12-cloud")]
    boot += ["--root", "root.img,partition=1", "--timeout", str(BOOT_S)]
    boot += ["--disk", "disk.qcow2,format=qcow2,mount=/mnt/disk"]
    boot += ["--disk", "victim.qcow2,format=qcow2"]
    boot += ["--fs", f"{folder}/share,tag=share", "--fs", f"{folder}/ro,tag=ro,ro"]
    boot += ["--", "storage", str(MIBS), str(OPERATIONS)]
    words = ["sh", "-c", KILL, "sh", str(folder), *boot]
    done = in_lab(words, code=SOUND, writable=[str(folder)])
    assert b"all is sound" in done.stdout
    assert b"something is left" not in done.stdout
    assert done.stderr.count(b"was ended by signal 9; what the guest asks of it fails now") == 2
    assert (folder / "share/reply").read_text() == "from the guest\n"
    assert not (folder / "ro/new").exists()

    def run(command: str) -> None:
        subprocess.run(shlex.split(command), check=True, timeout=60, cwd=folder)

    part = (folder / "root.img").read_bytes()[FIRST_SECTOR * SECTOR :]
    (folder / "root.part").write_bytes(part)
    run("/usr/sbin/e2fsck -fn root.part")
    run("qemu-img convert -O raw disk.qcow2 out.img")
    run("/usr/sbin/e2fsck -fn out.img")
    run("/usr/sbin/debugfs -R 'dump /data out' out.img")
    numbers = memoryview((folder / "out").read_bytes()).cast("I")
    expected = (mib << 20 | i for mib in range(MIBS) for i in range(MIB // 4))
    assert len(numbers) == MIBS * MIB // 4
    assert all(map(operator.eq, numbers, expected))
