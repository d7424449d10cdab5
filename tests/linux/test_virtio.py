"""Stock Debian kernels find and use their virtio disk, in the lab, by either transport."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MIB = 1 << 20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """disk.c, compiled."""
    target = tmp_path_factory.mktemp("guest") / "disk"
    command = ["gcc", "-O1", "-static", "-o", str(target), str(HERE / "disk.c")]
    subprocess.run(command, check=True, timeout=60)
    return target


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty ext4 file system."""
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin")
    if mke2fs is None:
        pytest.skip("needs mke2fs: apt-get install e2fsprogs")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run([mke2fs, "-q", "-t", "ext4", str(path)], check=True, timeout=60)
    return path


def data_of(disk: Path, folder: Path) -> bytes:
    """The file that the guest wrote; the file system must be clean."""
    subprocess.run(["/usr/sbin/e2fsck", "-fn", str(disk)], check=True, timeout=60)
    command = ["/usr/sbin/debugfs", "-R", f"dump /data {folder}/data", str(disk)]
    subprocess.run(command, check=True, timeout=60)
    return (folder / "data").read_bytes()


@pytest.mark.parametrize(
    ("name", "transport", "cpus", "options", "cmdline"),
    [
        ("6.12-cloud", "pci", 2, ",queues=4", ""),
        ("6.12-cloud", "pci", 1, "", "pci=nomsi"),
        ("6.12-cloud", "mmio", 2, ",queues=2", ""),
        ("6.1-cloud", "pci", 1, ",cache=unsafe", ""),
        ("6.1-generic", "pci", 2, "", ""),
    ],
)
def test_a_stock_kernel_uses_its_disk(
    boot: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    program: Path,
    disk: Path,
    tmp_path: Path,
    name: str,
    transport: str,
    cpus: int,
    options: str,
    cmdline: str,
) -> None:
    words = ["-c", str(cpus), "--transport", transport, "--rng", "--add", str(program)]
    words += ["--disk", f"{disk},serial=one{options}"]
    words += ["--append", f"console=ttyS0 quiet panic=-1 {cmdline}", "--", str(program), "3"]
    done = boot(debian_kernel(name), *words, writable=[str(tmp_path)])
    assert b"the disk is sound" in done.stdout
    numbers = struct.unpack(f"<{4 * MIB}I", data_of(disk, tmp_path))
    assert numbers == tuple(mib << 20 | i for mib in range(16) for i in range(MIB // 4))
