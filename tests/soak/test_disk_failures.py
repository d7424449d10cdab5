"""Disks that fail under a stock kernel: bad sectors from the device mapper, and kills of pykvm."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from stock import LIMIT_S, tool

from pykvm.boot.kernels import fetch
from pykvm.boot.modules import ORDER, initrd_files
from pykvm.lab import Lab

MIB = 1 << 20
BAD = 8192  # the first of 8 bad sectors
KILLS = int(os.environ.get("PYKVM_KILLS", "4"))

# Blocks of the first 8 MiB hold their number once they are said to be flushed; behind them is fio.
WRITER = r"""
fio --name=x --filename=/dev/vda --offset=8m --size=8m --rw=randwrite --bs=4k --fsync=4 \
    --ioengine=psync --time_based --runtime=900 --minimal >/dev/null &
n=START
while :; do
    printf '%4096d' $n | busybox dd of=/dev/vda bs=4096 seek=$n conv=fsync,notrunc 2>/dev/null ||
        exit 9
    echo flushed $n
    n=$((n + 1))
done
"""
READER = r"""
n=0
while [ $n -le LAST ]; do
    found=$(busybox dd if=/dev/vda bs=4096 skip=$n count=1 2>/dev/null)
    [ "$found" = "$(printf '%4096d' $n)" ] || { echo block $n is lost; exit 8; }
    n=$((n + 1))
done
echo all is there
"""
# Kills pykvm in the middle of whatever it does after $1 flushes.
KILLER = r"""
count=$1; shift
"$@" </dev/null >out 2>err & pid=$!
until [ "$(grep -c flushed out)" -ge $count ] || ! kill -0 $pid 2>/dev/null; do sleep 0.1; done
kill -KILL $pid; wait $pid
cat out err
"""

# Serves a disk, and starts again what the guest asks to be ended.
RESTARTER = r"""
serve() {
    qemu-storage-daemon --blockdev driver=file,node-name=d,filename=disk \
        --export vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=/tmp/socket,writable=on &
    daemon=$!
}
serve
until [ -S /tmp/socket ]; do sleep 0.1; done
mkfifo /tmp/out
"$@" </dev/null >/tmp/out & pid=$!
while read -r line; do
    echo "$line"
    case "$line" in
    "now TERM"*) kill -TERM $daemon ;;
    "now KILL"*) kill -KILL $daemon ;;
    *) continue ;;
    esac
    wait $daemon
    serve
done </tmp/out
wait $pid; code=$?
kill $daemon
exit $code
"""
RESTARTED = r"""
fio --name=verify --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite \
    --bs=4k --size=16m --verify=crc32c --minimal >out & fio=$!
busybox sleep 2; echo now TERM
wait $fio; echo "fio ended with $?"
busybox dd if=/dev/zero of=/dev/vda bs=1M oflag=direct 2>/dev/null &
echo now KILL; wait
busybox sleep 3
busybox dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct && echo it is read again
"""


def boot_command(disk: str, script: str, *words: object) -> list[str]:
    command = [sys.executable, "-m", "pykvm", "boot", fetch("6.12-cloud").image, "--any-host"]
    command += ["-m", "512M"]
    for spec in ("/bin/busybox:/bin/sh", "/bin/busybox", tool("fio")):
        command += ["--add", spec]
    command += ["--disk", disk, *words, "--append", "console=ttyS0 quiet panic=-1"]
    return list(map(str, [*command, "--", "sh", "-c", f"PATH=/bin:/usr/bin; {script}"]))


@pytest.mark.parametrize("options", ["", ",cache=none", ",overlay=PATH"])
def test_what_was_flushed_survives_kills_during_fio(lab: Lab, tmp_path: Path, options: str) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    spec = f"{disk}{options.replace('PATH', str(tmp_path / 'overlay'))}"
    last = -1
    for kill in range(KILLS):
        writer = WRITER.replace("START", str(last + 1))
        script = f"cd {tmp_path}\n{KILLER}"
        command = ["sh", "-c", script, "sh", str(7 + 5 * kill), *boot_command(spec, writer)]
        done = lab.run(command, timeout=LIMIT_S, writable=[str(tmp_path)])
        said = done.stdout.decode(errors="replace")
        numbers = re.findall(r"^flushed (\d+)\r?\n", said, re.MULTILINE)
        assert len(numbers) >= 7 + 5 * kill, said
        last = int(numbers[-1])
    done = lab.run(
        boot_command(spec, READER.replace("LAST", str(last))),
        timeout=LIMIT_S,
        writable=[str(tmp_path)],
    )
    assert b"all is there" in done.stdout, done
    if "overlay" in options:
        assert not any(disk.read_bytes())


def test_a_guest_goes_on_when_its_back_end_is_started_again(lab: Lab, tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(16 * MIB)
    script = f"cd {tmp_path}\n{RESTARTER}"
    command = boot_command("vhost-user=/tmp/socket,reconnect=1", RESTARTED)
    done = lab.run(["sh", "-c", script, "sh", *command], timeout=LIMIT_S, writable=[str(tmp_path)])
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, said
    assert "fio ended with 0" in said
    assert "it is read again" in said
    assert said.count("waits until it is back") == said.count("/socket is back") == 2


def test_bad_sectors_are_errors_that_say_which_request(lab: Lab, tmp_path: Path) -> None:
    """dm-error has 8 sectors in the middle of dm-0 and dm-2, dm-flakey all writes to dm-1."""
    image, folder = fetch("6.12-cloud"), tmp_path / "modules"
    folder.mkdir()
    files = initrd_files(image.modules, ["loop", "dm_mod", "dm_flakey"])
    for name, data in files.items():
        (folder / Path(name).name).write_bytes(data)
    dmsetup = tool("dmsetup")
    sectors = 16 * MIB // 512
    bad = f"0 {BAD} linear /dev/loop0 0\n{BAD} 8 error\n"
    bad += f"{BAD + 8} {sectors - BAD - 8} linear /dev/loop0 {BAD + 8}\n"
    flakey = f"0 {sectors} flakey /dev/loop1 0 0 1 1 error_writes\n"
    host = (
        f"cd {folder}; for m in $(cat {ORDER}); do insmod $m; done; cd /tmp; "
        "truncate -s 16M one two; losetup /dev/loop0 one; losetup /dev/loop1 two; "
        f"printf '{bad}' | {dmsetup} create --noudevsync --noudevrules bad && "
        f"printf '{flakey}' | {dmsetup} create --noudevsync --noudevrules flakey && "
        f"printf '{bad}' | {dmsetup} create --noudevsync --noudevrules base || exit 99; "
        '"$@" 2>&1; echo code $?'
    )
    at = BAD * 512 // 4096
    dd = "busybox dd bs=4096 count=1 2>/dev/null"
    script = (
        f"{dd} if=/dev/vda of=/dev/null iflag=direct skip={at - 1} && echo before;"
        f"{dd} if=/dev/vda of=/dev/null iflag=direct skip={at} || echo bad read;"
        f"{dd} if=/dev/vda of=/dev/null iflag=direct skip={at + 1} && echo after;"
        f"{dd} if=/dev/zero of=/dev/vda seek={at} conv=fsync || echo bad flush;"
        f"{dd} if=/dev/vdb of=/dev/null iflag=direct && echo good read;"
        f"{dd} if=/dev/zero of=/dev/vdb oflag=direct || echo bad write;"
        f"{dd} if=/dev/vdc of=/dev/null iflag=direct skip={at} || echo bad base;"
        f"{dd} if=/dev/zero of=/dev/vdc oflag=direct seek={at} && echo good overlay;"
        f"{dd} if=/dev/vdc of=/dev/null iflag=direct skip={at} && echo good base"
    )
    disks = ["--disk", "/dev/dm-1,cache=none", "--disk", "/dev/dm-2,overlay=on"]
    command = ["sh", "-c", host, "sh", *boot_command("/dev/dm-0", script, *disks)]
    done = lab.run(command, timeout=LIMIT_S)
    said = done.stdout.decode(errors="replace")
    words = ["before", "bad read", "after", "bad flush", "good read", "bad write", "bad base"]
    for word in (*words, "good overlay", "good base", "code 0"):
        assert f"{word}\n" in said.replace("\r", ""), said + done.stderr.decode(errors="replace")
    for request in (
        f"/dev/dm-0: read, sector {BAD}, 4096 bytes",
        "/dev/dm-0: flush, sector 0, 0 bytes",
        "/dev/dm-1: write, sector 0, 4096 bytes",
        f"/dev/dm-2,overlay=on: read, sector {BAD}, 4096 bytes",
    ):
        assert f"--disk: {request}: Input/output error" in said
