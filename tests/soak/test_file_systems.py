"""File systems that the kernel has as modules, in partitions: mounted, written, checked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from stock import KERNELS, LIMIT_S, tool

from pykvm.boot.kernels import fetch
from pykvm.lab import Lab
from pykvm.virtio.config.contents import SECTOR, partitions

MIB = 1 << 20
SIZES = {"ext4": 64, "xfs": 304, "btrfs": 128, "vfat": 64, "squashfs": 4}
MAKE = {
    "ext4": ["mke2fs", "-q", "-t", "ext4"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "vfat": ["mkfs.vfat"],
}
CHECK = {
    "ext4": ["e2fsck", "-fn"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
    "vfat": ["fsck.vfat", "-n"],
}
PATTERN = b"what the guest wrote\n" * 200_000


def run(*words: object, input: bytes = b"") -> None:
    name, *rest = map(str, words)
    done = subprocess.run([tool(name), *rest], input=input, check=False, capture_output=True)
    assert done.returncode == 0, done


def in_second_partition(disk: Path, content: Path, table: str) -> None:
    """Make `disk`: a partition of nothing, and one of `content`."""
    mibs = -(-content.stat().st_size // MIB)
    with disk.open("wb") as file:
        file.truncate((mibs + 8) * MIB)
    run("sfdisk", "-q", disk, input=f"label: {table}\nsize=2M\nsize={mibs}M\n".encode())
    with disk.open("r+b") as file:
        start = partitions(file)[2] * SECTOR
        file.seek(start)
        file.write(content.read_bytes())


def second_partition(disk: Path, content: Path) -> None:
    """Write it over `content`."""
    size = content.stat().st_size
    with disk.open("rb") as file:
        start = partitions(file)[2] * SECTOR
        file.seek(start)
        content.write_bytes(file.read(size))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a shell, and something to read."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("bin", "dev", "proc", "sys", "run", "mnt"):
        (root / name).mkdir()
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "bin/sh").symlink_to("busybox")
    (root / "pattern").write_bytes(PATTERN)
    return root


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_guest_writes_to_a_partition_of_every_file_system(
    lab: Lab, tmp_path: Path, tree: Path, kernel: str
) -> None:
    """Its root is one too: btrfs from a rootdir, because mkfs.btrfs makes one of a folder."""
    for number, (name, size) in enumerate(SIZES.items()):
        image = tmp_path / f"{name}.part"
        with image.open("wb") as file:
            file.truncate(size * MIB)
        if name == "squashfs":
            image.unlink()
            run("mksquashfs", tree, image, "-noappend", "-comp", "gzip")
        else:
            rootdir = ["--rootdir", tree] if name == "btrfs" else []
            run(*MAKE[name], *rootdir, image)
        in_second_partition(tmp_path / name, image, "gpt" if number % 2 else "dos")
    wanted = hashlib.md5(PATTERN).hexdigest()
    written = [name for name in SIZES if name in CHECK and name != "btrfs"]
    script = "".join(
        f"busybox cp /pattern /mnt/{name}/written; "
        f"busybox mkdir /mnt/{name}/below; busybox cp /pattern /mnt/{name}/below/more; "
        for name in written
    )
    script += "busybox cp /pattern /written; busybox md5sum /mnt/squashfs/pattern; "
    script += "busybox grep /dev/vd /proc/mounts"
    command = [sys.executable, "-m", "pykvm", "boot", fetch(kernel).image, "--any-host"]
    command += ["-m", "512M", "--root", f"{tmp_path}/btrfs,partition=2"]
    for name in (*written, "squashfs"):
        ro = ",ro" if name == "squashfs" else ""
        command += ["--disk", f"{tmp_path}/{name},partition=2,mount=/mnt/{name}{ro}"]
    command += ["--append", "console=ttyS0 quiet panic=-1", "--", "sh", "-ec", script]
    done = lab.run(list(map(str, command)), timeout=LIMIT_S, writable=[str(tmp_path)])
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said + done.stderr.decode(errors="replace")
    assert f"{wanted}  /mnt/squashfs/pattern" in said
    for name in SIZES:
        assert f" {name} " in said  # in /proc/mounts
    for name in CHECK:
        image = tmp_path / f"{name}.part"
        second_partition(tmp_path / name, image)
        run(*CHECK[name], image)
