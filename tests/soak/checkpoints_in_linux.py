"""Linux writes to its file system between checkpoints, and goes on from each. Run in the lab by
test_checkpoints.py:

    python checkpoints_in_linux.py KERNEL IMAGE
"""

from __future__ import annotations

import re
import sys

from pykvm import Machine, MachineConfig
from pykvm.boot.guestimage import default_initrd
from pykvm.virtio.config.disk import DiskConfig

ROUNDS = 12
LIMIT_S = 600
# Each round reads from the disk what the round before wrote there, and no other.
SCRIPT = f"""
busybox mkdir /mnt; busybox mount -t ext4 /dev/vda /mnt; echo 0 >/mnt/number
i=0
while [ $i -lt {ROUNDS} ]; do
    busybox sync; echo 3 >/proc/sys/vm/drop_caches
    n=$(busybox cat /mnt/number) && [ "$n" = $i ] || echo "WRONG: $n, not $i"
    i=$((i + 1))
    busybox dd if=/dev/urandom of=/mnt/file$i bs=64k count=4 2>/dev/null
    (cd /mnt && busybox md5sum file$i >>sums && busybox md5sum -c -s sums) || echo "WRONG: sums"
    echo $i >/mnt/number; busybox sync
    echo "round $i"
done
busybox umount /mnt
"""


def rounds(console: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^round (\d+)", console, re.MULTILINE)]


def run_to_the_end(vm: Machine) -> None:
    console = vm.run(timeout=LIMIT_S).console
    assert rounds(console) == list(range(1, ROUNDS + 1)), console.decode()
    assert b"WRONG" not in console, console.decode()


def main() -> None:
    kernel, image = sys.argv[1:]
    modules = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
    initrd = default_initrd(
        kernel, ["busybox", "sh", "-c", SCRIPT], add=["/bin/busybox"], modules=modules
    )
    config = MachineConfig(
        kernel=kernel,
        initrd=(initrd,),
        memory=256 << 20,
        cmdline="console=ttyS0 quiet panic=-1",
        cpus=2,
        disks=(DiskConfig(image, overlay="on"),),
    )
    with Machine(config) as vm:
        points = vm.checkpoints(every="console:^round")
        run_to_the_end(vm)
        assert points.error is None
        found = vm.bisect(lambda vm: (rounds(vm.console_log) or [0])[-1] >= 7)
        with found.machine as before:
            assert rounds(before.console_log)[-1] <= 6
            run_to_the_end(before)
        for point in list(points)[1:-1:3]:
            with point.machine() as other:
                run_to_the_end(other)
        print(f"{len(points)} checkpoints, {points.size >> 10} KiB")


main()
