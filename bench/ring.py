"""What a disk request costs, kick to interrupt, without Linux: pykvm beside a bare echo in C.

    python bench/ring.py [--bytes N] [--rounds N] [--json FILE]

The same guest everywhere (floor/ring.c): laps of reads of sector 0, one at a time, by virtio-mmio.
The echo is an ioeventfd and an irqfd with a thread between them that reads the one and writes the
other; "echo, pread" reads as many bytes of the same file in between. The rest is what pykvm adds:
the ring, the checks and its own way to the file. The file is in the page cache.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from functools import partial
from itertools import pairwise
from statistics import median

from exits import LAPS, MARK, MEMORY, Mark, raw_us
from measure import Bar, Samples, compiled, interleaved, main, options, quiet, table

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.virtio.config.disk import DiskConfig

COUNT = 20  # requests a lap


def pykvm_us(guest: bytes, disk: str) -> tuple[float]:
    """Microseconds a request of a machine with this disk."""
    config = MachineConfig(
        kernel=guest,
        mode=CpuMode.PROTECTED,
        memory=MEMORY,
        disks=(DiskConfig(disk),),
        transport="mmio",
    )
    with Machine(config) as machine:
        mark = Mark(machine)
        machine.pio(MARK)(mark)
        machine.run(timeout=300)
        assert len(mark.times) > LAPS
    return (median(b - a for a, b in pairwise(mark.times)) / COUNT * 1e6,)


def run(args: Namespace) -> tuple[dict[str, Samples], list[Bar]]:
    """One table."""
    guest = compiled("ring.c", "flat-c", COUNT=COUNT, BYTES=args.bytes)
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(1 << 20))
        file.flush()
        echo = [str(compiled("floor.c", "program")), "echo", str(guest), str(MEMORY)]
        rivals = {
            "echo": partial(raw_us, echo, COUNT),
            "echo, pread": partial(raw_us, [*echo, file.name, str(args.bytes)], COUNT),
            "pykvm": partial(pykvm_us, guest.read_bytes(), file.name),
        }
        (found,) = interleaved(rivals, args.rounds)
    title = f"a read of {args.bytes} bytes, µs"
    table(title, found, "echo")
    # The bar: 1.2 times the bare echo, plus the system call.
    allowed = 0.2 * quiet(found["echo"]) + quiet(found["echo, pread"])
    bar = Bar("a request / (1.2 echo + pread)", quiet(found["pykvm"]) / allowed, 1.0)
    return {title: found}, [bar]


if __name__ == "__main__":
    parser = options("What one disk request costs.", rounds=9)
    parser.add_argument("--bytes", type=int, default=512, metavar="N", help="default: 512")
    main(parser, run)
