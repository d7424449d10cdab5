"""What a request costs, kick to interrupt, without Linux: pykvm beside a bare echo in C.

    python bench/ring.py [--bytes N] [--rounds N] [--json FILE]

The same guest everywhere (floor/ring.c): laps of reads of sector 0, one at a time, by virtio-mmio;
then of frames that a network card sends to itself (``--net socket=A,peer=A``). The echo is an
ioeventfd and an irqfd with a thread between them that reads the one and writes the other; "echo,
pread" reads as many bytes of the same file in between, "echo, send" sends itself a datagram of as
many. The rest is what pykvm adds: the rings, the checks and its own way to file and socket. The
file is in the page cache.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from exits import LAPS, MARK, MEMORY, Mark, raw_us
from measure import Bar, Samples, compiled, interleaved, main, options, quiet, table

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.virtio.config.disk import DiskConfig
from pykvm.virtio.config.net import NetConfig

COUNT = 20  # requests a lap


def pykvm_us(guest: bytes, **device: Any) -> tuple[float]:
    """Microseconds a request of a machine with this device."""
    config = MachineConfig(
        kernel=guest,
        mode=CpuMode.PROTECTED,
        memory=MEMORY,
        transport="mmio",
        **device,
    )
    with Machine(config) as machine:
        mark = Mark(machine)
        machine.pio(MARK)(mark)
        machine.run(timeout=300)
        assert len(mark.times) > LAPS
    return (median(b - a for a, b in pairwise(mark.times)) / COUNT * 1e6,)


def compare(
    title: str, call: str, guest: Path, words: list[str], rounds: int, **device: Any
) -> tuple[Samples, Bar]:
    """A table: echo, echo with a system call of its own, pykvm. Bar: 1.2 echoes and the call."""
    echo = [str(compiled("floor.c", "program")), "echo", str(guest), str(MEMORY)]
    rivals = {
        "echo": partial(raw_us, echo, COUNT),
        f"echo, {call}": partial(raw_us, [*echo, *words], COUNT),
        "pykvm": partial(pykvm_us, guest.read_bytes(), **device),
    }
    (found,) = interleaved(rivals, rounds)
    table(title, found, "echo")
    allowed = 0.2 * quiet(found["echo"]) + quiet(found[f"echo, {call}"])
    return found, Bar(f"{title} / (1.2 echo + {call})", quiet(found["pykvm"]) / allowed, 1.0)


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """Two tables."""
    size = str(args.bytes)
    read, frame = f"a read of {size} bytes, µs", f"a frame of {size} bytes, µs"
    with tempfile.TemporaryDirectory() as folder:
        file, cable = f"{folder}/file", f"{folder}/cable"
        Path(file).write_bytes(bytes(1 << 20))
        guest = compiled("ring.c", "flat-c", COUNT=COUNT, BYTES=size)
        disk = compare(
            *(read, "pread", guest, [file, size], args.rounds), disks=(DiskConfig(file),)
        )
        guest = compiled("ring.c", "flat-c", COUNT=COUNT, BYTES=size, NET=1)
        loop = NetConfig("socket", cable, peer=cable)
        net = compare(*(frame, "send", guest, ["-", size], args.rounds), nets=(loop,))
    return {read: disk[0], frame: net[0]}, [disk[1], net[1]]


if __name__ == "__main__":
    parser = options("What one request costs.", rounds=9)
    parser.add_argument("--bytes", type=int, default=512, metavar="N", help="default: 512")
    main(parser, run)
