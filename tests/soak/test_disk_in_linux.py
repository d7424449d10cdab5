"""Stock Debian kernels and their disks, for longer than CI has time."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from stock import KERNELS, LIMIT_S, tool

from pykvm.boot.guestimage import default_initrd
from pykvm.boot.kernels import fetch
from pykvm.lab import Lab

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
TRANSPORTS = ("pci", "mmio")


def empty_disk(folder: Path, size_mib: int) -> Path:
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
    return path


def boot(
    lab: Lab,
    kernel: str,
    transport: str,
    disk: Path,
    script: str,
    *words: object,
    cpus: int = 1,
    add: tuple[object, ...] = (),
    prefix: tuple[object, ...] = (),
    options: str = "",
) -> str:
    """Run a shell script in a guest with this disk, as /dev/vda; returns what it said.

    Whatever 'pykvm doctor' says of the lab: TCG seldom answers one of its questions wrongly.
    """
    command = [*prefix, sys.executable, "-m", "pykvm", "boot", fetch(kernel).image, "--any-host"]
    command += ["--transport", transport, "--disk", f"{disk}{options}", "-c", cpus, "-m", "1G"]
    command += ["--add", "/bin/busybox:/bin/sh", "--add", "/bin/busybox", *words]
    for program in add:
        command += ["--add", program]
    command += ["--append", "console=ttyS0 quiet panic=-1"]
    command += ["--", "sh", "-ec", f"mkdir -p /tmp; {script}"]
    done = lab.run(list(map(str, command)), timeout=LIMIT_S, writable=[str(disk.parent)])
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    return done.stdout.decode(errors="replace")


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_256_mib_are_what_was_written(
    lab: Lab, disk_program: Path, tmp_path: Path, kernel: str, transport: str, cpus: int
) -> None:
    disk = empty_disk(tmp_path, 400)
    mke2fs = tool("mke2fs")
    script = f"{mke2fs} -q -t ext4 /dev/vda; {disk_program} 1 256"
    add = (disk_program, mke2fs)
    said = boot(lab, kernel, transport, disk, script, cpus=cpus, add=add)
    assert "the disk is sound" in said
    subprocess.run([tool("e2fsck"), "-fn", str(disk)], check=True)
    dump = [tool("debugfs"), "-R", f"dump /data {tmp_path}/data", str(disk)]
    subprocess.run(dump, check=True)
    wanted = hashlib.sha256()
    for mib in range(256):
        wanted.update(struct.pack(f"<{MIB // 4}I", *range(mib << 20, (mib << 20) + MIB // 4)))
    found = hashlib.sha256((tmp_path / "data").read_bytes())
    assert found.hexdigest() == wanted.hexdigest()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_thousand_unbinds_leave_nothing_behind(
    lab: Lab, disk_program: Path, tmp_path: Path, transport: str
) -> None:
    disk = empty_disk(tmp_path, 64)
    subprocess.run([tool("mke2fs"), "-q", "-t", "ext4", str(disk)], check=True)
    growth = (sys.executable, HERE / "growth.py", "100 rounds", "1000 rounds")
    said = boot(
        *(lab, "6.12-cloud", transport, disk, f"{disk_program} 1000"),
        add=(disk_program,),
        prefix=growth,
    )
    fds, threads, memory_kib = map(int, said.rpartition("grew by ")[2].split())
    assert (fds, threads) == (0, 0)
    assert memory_kib < 2048


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fio_reads_what_it_wrote(lab: Lab, tmp_path: Path, transport: str) -> None:
    disk = empty_disk(tmp_path, 64)
    fio = tool("fio")
    script = (
        f"cd /tmp; {fio} --name=verify --filename=/dev/vda --direct=1 --ioengine=libaio "
        "--iodepth=32 --rw=randwrite --bsrange=512-64k --size=64m --verify=crc32c "
        "--fsync=100 --minimal"
    )
    said = boot(lab, "6.12-cloud", transport, disk, script, add=(fio,), options=",queues=2", cpus=2)
    line = next(line for line in said.splitlines() if line.startswith("3;fio-"))
    assert line.split(";")[4] == "0"  # its error


def test_lspci_finds_nothing_wrong(lab: Lab, tmp_path: Path) -> None:
    disk = empty_disk(tmp_path, 16)
    lspci = tool("lspci")
    said = boot(
        *(lab, "6.12-cloud", "pci", disk, f"{lspci} -vvv; {lspci} -xxxx", "--rng"), add=(lspci,)
    )
    assert said.count("Capabilities: [") >= 12
    assert "MSI-X: Enable+" in said
    assert "Kernel driver in use: virtio-pci" in said
    # It misses the kernel's module index, which pykvm's initrd does not have.
    said = said.replace("lspci: Unable to load libkmod resources", "")
    for complaint in ("!!!", "broken", "<unassigned>", "invalid", "Unknown", "denied", "lspci:"):
        assert complaint not in said


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_kexec_finds_the_disk_again(lab: Lab, tmp_path: Path, transport: str) -> None:
    disk = empty_disk(tmp_path, 16)
    disk.write_bytes(b"found again".ljust(16 * MIB, b"\0"))
    kernel, kexec = fetch("6.12-cloud").image, tool("kexec")
    modules = ["virtio_pci", "virtio_mmio", "virtio_blk"]
    command = ["sh", "-c", "busybox head -c 11 /dev/vda && echo , after kexec"]
    shell = ["/bin/busybox:/bin/sh", "/bin/busybox"]
    (tmp_path / "second").write_bytes(default_initrd(str(kernel), command, shell, modules))
    script = (
        f"{kexec} -l {kernel} --initrd={tmp_path}/second --reuse-cmdline; "
        "busybox head -c 11 /dev/vda; echo , before; "
        f"exec {kexec} -e"
    )
    add = (kexec, kernel, tmp_path / "second")
    said = boot(lab, "6.12-cloud", transport, disk, script, add=add)
    assert "found again, before" in said
    assert "found again, after kexec" in said


def test_a_block_device_and_its_errors(lab: Lab, tmp_path: Path) -> None:
    """A loop device whose file becomes shorter is a disk with bad sectors: EIO, from the kernel."""
    disk = empty_disk(tmp_path, 16)
    image = fetch("6.12-cloud")
    module = next(image.modules.rglob("loop.ko*"))
    script = (
        "busybox dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync 2>&1; echo written $?; "
        "echo now; busybox usleep 3000000; busybox dd if=/dev/vda of=/dev/null bs=1M "
        "iflag=direct 2>&1 || echo unreadable"
    )
    pykvm = [
        sys.executable,
        "-m",
        "pykvm",
        "boot",
        str(image.image),
        "--disk",
        "/dev/loop0,cache=none",
    ]
    pykvm += ["--add", "/bin/busybox:/bin/sh", "--add", "/bin/busybox"]
    pykvm += ["--append", "console=ttyS0 quiet panic=-1", "--", "sh", "-c", script]
    host = (
        f"cp {module} /tmp/loop.ko.xz && xz -d /tmp/loop.ko.xz && insmod /tmp/loop.ko && "
        f"truncate -s 16M /tmp/image && losetup /dev/loop0 /tmp/image || exit 99; "
        '("$@"; echo code $?) 2>&1 | while read -r line; do echo "$line"; '
        'case "$line" in now*) truncate -s 4M /tmp/image;; esac; done'
    )
    done = lab.run(["sh", "-c", host, "sh", *pykvm], timeout=LIMIT_S, writable=[str(disk.parent)])
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said + done.stderr.decode(errors="replace")
    assert "written 0" in said
    assert "unreadable" in said
    assert "/dev/loop0: read, sector 8192" in said
    assert "Input/output error" in said
