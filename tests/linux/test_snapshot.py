"""A stock kernel goes on where it was saved, with its clock, timers, CPUs and disk; in the lab."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
b=/bin/busybox
echo nonce $($b cat /proc/sys/kernel/random/boot_id) cpus $($b grep -c ^processor /proc/cpuinfo)
for i in 1 2 3 4 5 6 7; do
  sum=$($b dd if=/dev/vda iflag=direct bs=64k 2>/dev/null | $b md5sum | $b cut -c1-32)
  echo tick $i up $($b cut -d' ' -f1 /proc/uptime) sum $sum
  $b sleep 1
done
$b head -c 16 /dev/hwrng | $b md5sum
echo vmgenid: $($b ls /sys/bus/*/drivers/vmgenid)
$b dmesg | $b sed -n '/virtual machine fork/p'
"""

TRAVEL = """
import sys
from pykvm import Machine
with Machine.restore(sys.argv[1]) as vm:
    points = vm.checkpoints(every="console:^tick")
    code = vm.run(timeout=100).code
    found = vm.bisect(lambda vm: b"tick 7" in vm.console_log)
    with found.machine as before:
        said = bytes(before.console_log)
        again = before.run(timeout=100)
print(points.error, "codes", code, again.code)
print(b"tick" in said, said.count(b"tick 7"), again.console.count(b"tick 7"))
"""

RESEEDED = b"random: crng reseeded due to virtual machine fork"  # by new VM generation ids


def seconds(console: bytes) -> list[float]:
    return [float(up) for up in re.findall(rb"up ([\d.]+)", console)]


def test_a_stock_kernel_goes_on_where_it_was_saved(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    tmp_path: Path,
) -> None:
    pykvm = [sys.executable, "-m", "pykvm"]
    (tmp_path / "script").write_text(SCRIPT)
    disk, saved, later = (tmp_path / name for name in ("disk", "saved", "later"))
    disk.write_bytes(bytes(range(256)) * 4096)
    boot = [*pykvm, "boot", debian_kernel("6.12-cloud"), "-c", "2", "--rng"]
    boot += ["--disk", f"{disk},ro", "--add", "/bin/busybox", "--add", f"{tmp_path}/script:/script"]
    boot += ["--snapshot-at", "console:^tick 2 ", str(saved), "--diff", str(saved)]
    boot += ["--snapshot-at", "console:^tick 3 ", str(later), "--", "busybox", "sh", "/script"]
    done = in_lab(boot, writable=[str(tmp_path)])
    assert b"cpus 2" in done.stdout
    assert b"PYKV0001" in done.stdout  # the VM generation id has its driver
    assert RESEEDED not in done.stdout
    (checksum,) = set(re.findall(rb"sum (\w+)", done.stdout))
    ups = seconds(done.stdout)
    for clock, folder, *lazy in (("stay", saved, "--lazy"), ("step", later)):
        words = [*pykvm, "restore", "--clock", clock, *lazy, str(folder)]
        again = in_lab(words, writable=[str(tmp_path)])
        assert b"nonce" not in again.stdout
        assert b"tick 7" in again.stdout
        assert b"tick 1" not in again.stdout
        assert RESEEDED in again.stdout
        assert set(re.findall(rb"sum (\w+)", again.stdout)) == {checksum}
        *_, sixth, seventh = seconds(again.stdout)
        assert seventh - sixth >= 1  # the guest slept, by its own clock
        if clock == "stay":
            assert ups[1] < sixth < ups[1] + 60
        else:
            assert sixth > ups[-1]  # the rest of the first run is over, and was seen to be
    size = [sum(file.stat().st_blocks for file in folder.iterdir()) for folder in (saved, later)]
    assert size[1] < size[0] / 3  # `later` stands on `saved`
    travel = in_lab([sys.executable, "-c", TRAVEL, str(saved)], writable=[str(tmp_path)])
    assert travel.stdout.splitlines() == [b"None codes 0 0", b"True 0 1"]
