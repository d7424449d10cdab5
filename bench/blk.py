"""A disk under fio, in a distribution's kernel: pykvm beside QEMU's q35 and microvm.

    pykvm lab -- python bench/blk.py KERNEL [--beside NAME…] [--jobs WORD…] [--runtime S] …

The same kernel, initrd and command line, and one file: in memory (/dev/shm), because what is
measured is the way of a request and not a disk. QEMU has an I/O thread and io_uring, as pykvm does.
The guest finds fio on a second, read-only disk made here (mke2fs) from the host's own, and runs the
jobs of `JOBS` one after another, each past the guest's page cache. `--beside snapshot` compares an
overlay that is dropped with QEMU's snapshot=on. --beside and --jobs choose, for a machine that is
quiet for minutes only. Where /dev/kvm runs Linux, `pykvm lab --` can be left out. Needs fio,
busybox and e2fsprogs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

from boot import CMDLINE, QEMU
from measure import Bar, Samples, interleaved, main, options, ratio, table

from pykvm.boot.guestimage import default_initrd
from pykvm.boot.initrd import host_files

DISK_MIB = 128
MEMORY_MIB = 512
TIMEOUT_S = 400

Jobs = dict[str, tuple[str, str, int]]
# Name: fio's rw, bs and iodepth.
JOBS: Jobs = {
    "4 KiB random read, depth 1": ("randread", "4k", 1),
    "4 KiB random write, depth 1": ("randwrite", "4k", 1),
    "4 KiB random read, depth 32": ("randread", "4k", 32),
    "4 KiB random write, depth 32": ("randwrite", "4k", 32),
    "1 MiB sequential read, depth 4": ("read", "1m", 4),
    "1 MiB sequential write, depth 4": ("write", "1m", 4),
}
# What --beside names: pykvm's transport and the disk's options; QEMU's machine, bus and options.
PAIRS = {
    "q35": (("pci", ""), ("q35", "pci", "")),
    "microvm": (("mmio", ""), ("microvm,rtc=on", "device", "")),
    "snapshot": (("pci", ",overlay=on"), ("q35", "pci", ",snapshot=on")),
}
# Offsets in a line of `--terse-version=3`: of the read figures; those of writes come 41 later.
IOPS, LATENCY_US, WRITES = 7, 39, 41
START = (
    "busybox mkdir -p /tools && busybox mount -t ext4 -o ro /dev/vdb /tools && "
    "busybox chroot /tools /run.sh"
)


def make_tools(folder: Path, jobs: Jobs, runtime_s: int) -> Path:
    """An ext4 image with fio, the libraries it needs, a shell and what to run."""
    root = folder / "tools"
    fio = shutil.which("fio") or sys.exit("needs fio: apt-get install fio")
    for spec in (fio, "/bin/busybox", "/bin/busybox:/bin/sh"):
        for name, source in host_files(spec).items():
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            target.chmod(0o755)
    for name in ("dev", "sys", "proc", "tmp"):
        (root / name).mkdir(exist_ok=True)
    sections = "".join(
        f"[job{number}]\nstonewall\nrw={rw}\nbs={size}\niodepth={depth}\n"
        for number, (rw, size, depth) in enumerate(jobs.values())
    )
    common = f"filename=/dev/vda\ndirect=1\nioengine=libaio\ntime_based\nruntime={runtime_s}\n"
    (root / "jobs").write_text(f"[global]\n{common}ramp_time=1\n{sections}")
    (root / "run.sh").write_text(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs none /dev\n"
        "/bin/busybox mount -t sysfs none /sys\n/bin/busybox mount -t proc none /proc\n"
        "/bin/busybox mount -t tmpfs none /tmp\ncd /tmp\n"
        f"{fio} --minimal --terse-version=3 /jobs\n"
    )
    (root / "run.sh").chmod(0o755)
    image = folder / "tools.img"
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or sys.exit("needs mke2fs")
    command = [mke2fs, "-q", "-t", "ext4", "-d", str(root), str(image), "192M"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image


def figures(jobs: Jobs, words: list[object]) -> tuple[float, ...]:
    """Boot and run the jobs: requests a second of each, then mean latencies of those of depth 1."""
    command = [str(word) for word in words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("3;fio-")]
    if len(lines) != len(jobs):
        sys.exit(f"{' '.join(command)}: {done.stdout.decode()} {done.stderr.decode()}")
    iops, latency = [], []
    for line, (rw, _, depth) in zip(lines, jobs.values(), strict=True):
        fields = line.split(";")
        at = WRITES if "write" in rw else 0
        iops.append(float(fields[IOPS + at]))
        if depth == 1:
            latency.append(float(fields[LATENCY_US + at]))
    return *iops, *latency


def qemu_disk(bus: str, number: int, path: Path, options: str = "") -> list[str]:
    drive = f"if=none,id=d{number},format=raw,file={path},cache=writeback,aio=io_uring{options}"
    return ["-drive", drive, "-device", f"virtio-blk-{bus},drive=d{number},iothread=io"]


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """A table for each job."""
    jobs = {name: job for name, job in JOBS.items() if any(word in name for word in args.jobs)}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        tools = make_tools(folder, jobs, args.runtime)
        disk, archive = folder / "disk", folder / "initrd"
        disk.write_bytes(os.urandom(1 << 20) * DISK_MIB)
        command = ["busybox", "sh", "-c", START]
        modules = ["virtio_pci", "virtio_mmio", "virtio_blk", "crc32c_generic", "ext4"]
        shell = shutil.which("busybox") or sys.exit("needs busybox: apt-get install busybox-static")
        archive.write_bytes(
            default_initrd(args.kernel, command, [f"{shell}:/bin/busybox"], modules)
        )
        pykvm: list[object] = [os.path.join(sysconfig.get_path("scripts"), "pykvm"), "boot"]
        pykvm += [args.kernel, "--initrd", archive, "--append", CMDLINE, "-m", f"{MEMORY_MIB}M"]
        qemu = [*QEMU, "-kernel", args.kernel, "-initrd", archive, "-append", CMDLINE]
        qemu += ["-m", str(MEMORY_MIB), "-object", "iothread,id=io"]

        temporary = ["env", f"TMPDIR={folder}"]  # for what is dropped
        rivals: dict[str, partial[tuple[float, ...]]] = {}
        pairs = []
        for beside in args.beside:
            (transport, options), (machine, bus, qemu_options) = PAIRS[beside]
            disks = ["--disk", f"{disk}{options}", "--disk", f"{tools},ro"]
            ours = [*temporary, *pykvm, *disks, "--transport", transport]
            disks = qemu_disk(bus, 0, disk, qemu_options) + qemu_disk(bus, 1, tools, ",readonly=on")
            theirs = [*temporary, *qemu, "-M", machine, *disks]
            pairs.append((f"pykvm, {transport}{options}", f"QEMU {machine}{qemu_options}"))
            rivals |= {
                name: partial(figures, jobs, words)
                for name, words in zip(pairs[-1], (ours, theirs), strict=True)
            }
        found = interleaved(rivals, args.rounds, warm=not args.cold)
    tables, bars = {}, []
    names = [f"{name}, per second" for name in jobs]
    names += [f"{name}, µs" for name, job in jobs.items() if job[2] == 1]
    for name, samples in zip(names, found, strict=True):
        tables[name] = samples
        table(name, samples, pairs[0][1])
        bars += [bar(name, samples, *pair) for pair in pairs]
    return tables, bars


def bar(name: str, samples: Samples, ours: str, theirs: str) -> Bar:
    """Ours no slower than theirs, as a figure that is to be small."""
    one, other = (ours, theirs) if name.endswith("µs") else (theirs, ours)
    return Bar(f"{name}: {ours} / {theirs}, as time", ratio(samples, one, other), 1.0)


if __name__ == "__main__":
    parser = options("A disk under fio.", rounds=3)
    parser.add_argument("kernel", metavar="KERNEL", help="a bzImage")
    parser.add_argument("--runtime", type=int, default=4, metavar="S", help="of a job (default: 4)")
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=PAIRS,
        default=["q35", "microvm"],
        help="default: q35 microvm",
    )
    parser.add_argument(
        "--jobs",
        nargs="+",
        metavar="WORD",
        default=[""],
        help="those with one of these in their names (default: all)",
    )
    parser.add_argument("--cold", action="store_true", help="count the first round, too")
    main(parser, run)
