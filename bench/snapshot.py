"""What it costs to go on from a snapshot: restored, forked, reset; beside the raw ioctls.

    python bench/snapshot.py [--rounds N] [--memory MIB] [--json FILE]

Going on: a machine captured at a port write is made anew and runs to its next one (floor/touch.S);
the floor does the same with nothing but the ioctls (floor.c), from a memfd. Resetting: in place, at
two sizes of memory and with few and many written pages; and how long it takes to find and copy back
the written pages in the two ways there are. Memory: what a fork takes that has run. As processes,
from exec to the first byte: ``pykvm restore``, QEMU with -incoming, and ``runc run`` of a program
that prints one, where those are installed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from create import MARK, FirstExit, raw_ms
from measure import Bar, Samples, compiled, interleaved, main, options, ratio, table
from start import QEMU, boot_ms

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode

MIB = 1 << 20
FEW, MANY = 4, 512  # pages written in a lap
SMALL, LARGE = 64 * MIB, 2048 * MIB
FORKS = 20


@contextmanager
def captured(pages: int, memory: int) -> Iterator[Machine]:
    """A machine that has run two laps, and is between two port writes."""
    guest = compiled("touch.S", "flat", PAGES=pages).read_bytes()
    config = MachineConfig(kernel=guest, mode=CpuMode.PROTECTED, memory=memory)
    with Machine(config) as machine:
        machine.pio(MARK)(FirstExit(machine))
        machine.run()
        machine.run()
        yield machine


# ── going on ─────────────────────────────────────────────────────────────────────────────────────


def go_on_ms(make: Callable[[], Machine]) -> tuple[float, float]:
    """Milliseconds to make a machine and run it to its first exit, and to destroy it: the second
    of two, as the floor does it. KVM waits for the kernel's other CPUs, and longer when it has not
    done so for a while; what the rivals did before must not count."""
    _go_on_ms(make)
    return _go_on_ms(make)


def _go_on_ms(make: Callable[[], Machine]) -> tuple[float, float]:
    started = time.perf_counter()
    with make() as machine:
        first_exit = FirstExit(machine)
        machine.pio(MARK)(first_exit)
        machine.run()
        ended = time.perf_counter()
    destroyed = time.perf_counter()
    return (first_exit.time - started) * 1e3, (destroyed - ended) * 1e3


def going_on(args: Namespace, folder: Path) -> tuple[dict[str, Samples], list[Bar]]:
    floor, memory = compiled("floor.c", "program"), args.memory * MIB
    guest = compiled("touch.S", "flat", PAGES=FEW)
    with captured(FEW, memory) as machine:
        machine.snapshot(folder / "machine")
        rivals = {
            "raw": partial(raw_ms, [str(floor), "restore", str(guest), str(memory)]),
            "fork": partial(go_on_ms, machine.fork),
            "restore": partial(go_on_ms, partial(Machine.restore, folder / "machine")),
            "restore, lazy": partial(
                go_on_ms, partial(Machine.restore, folder / "machine", lazy=True)
            ),
        }
        create, destroy = interleaved(rivals, args.rounds)
    table("to the first exit, ms", create, "raw")
    table("to destroy it, ms", destroy, "raw")
    more = median(create["restore"]) - median(create["raw"])
    bars = [
        Bar("fork / raw", ratio(create, "fork", "raw"), 1.2),
        Bar("restore - raw", more, 2.0, "ms"),
    ]
    return {"to the first exit, ms": create, "to destroy it, ms": destroy}, bars


# ── as processes ─────────────────────────────────────────────────────────────────────────────────


def save(kernel: Path, folder: Path) -> None:
    """A guest that waits to be restored (floor/resume.S), saved by pykvm."""
    with Machine(MachineConfig(kernel=kernel)) as machine:
        machine.on_snapshot_request = machine.stop
        machine.run()
        machine.snapshot(folder)


def save_by_qemu(command: list[str], file: Path) -> None:
    """The same guest, saved by QEMU while it waits."""
    monitor = file.with_suffix(".monitor")
    with subprocess.Popen(
        [*command, "-monitor", f"unix:{monitor},server,nowait"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        with socket.socket(socket.AF_UNIX) as human:
            human.connect(str(monitor))
            human.sendall(f'migrate "exec:cat > {file}"\nquit\n'.encode())
            process.wait()


def container(folder: Path) -> None:
    """A bundle for runc: a root with one program in it, which prints a '!'."""
    programs = folder / "rootfs" / "bin"
    programs.mkdir(parents=True)
    shutil.copy("/bin/busybox", programs / "echo")
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    spec = json.loads((folder / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/echo", "!"]}
    (folder / "config.json").write_text(json.dumps(spec))


def processes(args: Namespace, folder: Path) -> dict[str, Samples]:
    """No bar: most of ``pykvm restore`` is Python's start, which no other has."""
    kernel = compiled("resume.S", "elf")
    save(kernel, folder / "waiting")
    pykvm = os.path.join(sysconfig.get_path("scripts"), "pykvm")
    rivals = {"pykvm restore": partial(boot_ms, pykvm, "restore", folder / "waiting")}
    if shutil.which(QEMU[0]):
        qemu = [*QEMU, "-m", "256M", "-M", "microvm", "-kernel", str(kernel)]
        save_by_qemu(qemu, folder / "state")
        # To the port that tells a restored guest from another, QEMU's debug console answers 1.
        console = "isa-debugcon,iobase=0x5f9,readback=1,chardev=none"
        answer = ("-chardev", "null,id=none", "-device", console)
        incoming = ("-incoming", f"exec:cat {folder / 'state'}")
        rivals["QEMU -incoming"] = partial(boot_ms, *qemu, *answer, *incoming)
    if shutil.which("runc") and os.path.exists("/bin/busybox"):
        container(folder / "bundle")
        runc = ("runc", "--root", folder / "runc", "run", "--bundle", folder / "bundle")
        rivals["runc run"] = partial(boot_ms, *runc, f"pykvm-bench-{os.getpid()}")
    first, end = interleaved(rivals, args.rounds)
    table("exec to the first byte, ms", first, "pykvm restore")
    table("exec to exit, ms", end, "pykvm restore")
    return {"exec to the first byte, ms": first, "exec to exit, ms": end}


# ── resetting ────────────────────────────────────────────────────────────────────────────────────


def reset_ms(machine: Machine) -> tuple[float, float]:
    """Milliseconds to reset a machine that has run a lap, and to run the next one."""
    started = time.perf_counter()
    machine.reset()
    done = time.perf_counter()
    machine.run()
    return (done - started) * 1e3, (time.perf_counter() - done) * 1e3


def resetting(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    tables: dict[str, Samples] = {}
    bars = []
    for pages in (FEW, MANY):
        with captured(pages, SMALL) as small, captured(pages, LARGE) as large:
            for machine in (small, large):
                machine.fork().close()
                machine.run()
            rivals = {
                f"{SMALL // MIB} MiB": partial(reset_ms, small),
                f"{LARGE // MIB} MiB": partial(reset_ms, large),
            }
            found = dict(
                zip((f"reset, {pages} pages, ms", f"run after it, {pages} pages, ms"),
                    interleaved(rivals, 4 * args.rounds), strict=True)
            )  # fmt: skip
        for title, samples in found.items():
            table(title, samples, f"{SMALL // MIB} MiB")
        tables |= found
        first, *_ = found.values()
        larger = ratio(first, f"{LARGE // MIB} MiB", f"{SMALL // MIB} MiB")
        bars.append(
            Bar(f"reset with {pages} pages, {LARGE // MIB} / {SMALL // MIB} MiB", larger, 1.5)
        )
        both = sum(median(samples[f"{LARGE // MIB} MiB"]) for samples in found.values())
        bars.append(Bar(f"reset and run with {pages} pages", both, 10.0, "ms"))
    return tables, bars


def copy_on_write_ms(machine: Machine) -> tuple[float, float]:
    """Run a lap, then find and copy back what was written, by the kernel's copy-on-write."""
    started = time.perf_counter()
    machine.run()
    ran = time.perf_counter()
    machine.memory.revert()
    return (time.perf_counter() - ran) * 1e3, (ran - started) * 1e3


def dirty_log_ms(machine: Machine, origin: memoryview) -> tuple[float, float]:
    """The same by KVM's dirty log, which the machine's memslot has."""
    started = time.perf_counter()
    machine.run()
    ran = time.perf_counter()
    log = int.from_bytes(machine.vm.dirty_log(0, machine.memory.size), "little")
    while log:
        page = (log & -log).bit_length() - 1
        log &= log - 1
        gpa = page * 4096
        machine.memory.write(gpa, origin[gpa : gpa + 4096])
    return (time.perf_counter() - ran) * 1e3, (ran - started) * 1e3


def finding(args: Namespace) -> dict[str, Samples]:
    """No bar: why a reset asks the one and not the other."""
    tables = {}
    for memory in (SMALL, LARGE):
        with captured(FEW, memory) as one, captured(FEW, memory) as other:
            one.fork().close()
            other.vm.map_memory(other.memory, log_dirty=True)
            origin = other.memory.view(0, 4 * MIB)  # the guest's own pages; content is no matter
            rivals = {
                "copy-on-write": partial(copy_on_write_ms, one),
                "KVM's dirty log": partial(dirty_log_ms, other, origin),
            }
            back, lap = interleaved(rivals, 4 * args.rounds)
            del origin
        for title, samples in (("copy back", back), ("lap before", lap)):
            title = f"{title}, {memory // MIB} MiB, ms"
            table(title, samples, "copy-on-write")
            tables[title] = samples
    return tables


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def own_kib() -> int:
    """KiB of memory that no other process shares, and of page tables."""
    fields = dict(
        line.split(":", 1)
        for name in ("smaps_rollup", "status")
        for line in Path(f"/proc/self/{name}").read_text().splitlines()
        if ":" in line
    )
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty", "VmPTE"))


def forks_mib(memory: int) -> float:
    """MiB that a fork takes, when it has run a lap."""
    with captured(FEW, memory) as machine:
        machine.fork().close()
        before = own_kib()
        forks = [machine.fork() for _ in range(FORKS)]
        for fork in forks:
            fork.pio(MARK)(FirstExit(fork))
            fork.run()
        after = own_kib()
        for fork in forks:
            fork.close()
    return (after - before) / 1024 / FORKS


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """All tables, in the order of the description."""
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as name:
        folder = Path(name)
        tables, bars = going_on(args, folder)
        tables |= processes(args, folder)
        more, reset_bars = resetting(args)
        tables |= more | finding(args)
        for memory in (SMALL, LARGE):
            bars.append(
                Bar(f"a fork's own memory, {memory // MIB} MiB", forks_mib(memory), 1.0, "MiB")
            )
    return tables, [*bars, *reset_bars]


if __name__ == "__main__":
    parser = options("What it costs to go on from a snapshot.", rounds=20)
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="default: 256")
    main(parser, run)
