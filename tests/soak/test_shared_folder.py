"""A shared folder under stress-ng and fio: pykvm's guest and QEMU's, over the same virtiofsd."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from stock import LIMIT_S, tool

from pykvm import virtiofsd
from pykvm.boot.guestimage import default_initrd
from pykvm.boot.kernels import fetch
from pykvm.lab import Lab

# stress-ng's stressors of files and folders that check what they did.
STRESSORS = (
    "access chdir chmod chown copy-file dentry dir dirdeep dirmany fallocate fcntl filename flock "
    "fpunch fstat getdent handle hdd io-uring lease link locka lockf lockofd mknod mmap open "
    "readahead rename seek sendfile symlink sync-file touch utime xattr"
)
SCRIPT = f"""
cd /mnt/share && mkdir stress
for name in {STRESSORS}; do
    stress-ng --$name 1 -t 1 --verify --temp-path /mnt/share/stress >out 2>&1
    code=$?
    echo stressor $name: $code
    [ $code = 0 ] || cat out
done
fio --directory=/mnt/share --bsrange=512-64k --verify=crc32c --minimal --size=8m --nrfiles=32 \
    --name=mapped --ioengine=mmap --rw=randrw --name=written --ioengine=psync --rw=randwrite \
    --fsync=16
"""
MEMORY = "512M"
CMDLINE = "console=ttyS0 quiet panic=-1"

# Starts virtiofsd, then QEMU with a guest that has it as its folder.
QEMU = r"""
folder=$1; shift
"$@" & daemon=$!
until [ -S /tmp/fs.socket ]; do sleep 0.1; done
qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -serial stdio -M q35 \
    -accel kvm -cpu host,-arch-capabilities -m MEMORY \
    -object memory-backend-memfd,id=m,size=MEMORY,share=on -numa node,memdev=m \
    -chardev socket,id=c,path=/tmp/fs.socket -device vhost-user-fs-pci,chardev=c,tag=share \
    -device isa-debug-exit,iobase=0x5f8,iosize=1 \
    -kernel KERNEL -initrd INITRD -append "CMDLINE" </dev/null
kill $daemon
exit 0
"""


def programs() -> list[str]:
    tools = [tool(name) for name in ("stress-ng", "fio")]
    busybox = [f"/bin/busybox:/bin/{name}" for name in ("sh", "mkdir", "cat")]
    return [*busybox, *tools]


def passed(said: str) -> set[str]:
    """The stressors, and fio's jobs, that ended without an error."""
    print(said)
    jobs = [line.split(";") for line in said.splitlines() if line.startswith("3;fio-")]
    return {*re.findall(r"stressor (\S+): 0", said), *(job[2] for job in jobs if job[4] == "0")}


@pytest.fixture(scope="module")
def under_qemu(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("qemu")
    (folder / "share").mkdir()
    image, found = fetch("6.12-cloud"), virtiofsd.find()
    assert found is not None
    modules, fstab = ["virtio_pci", "fuse", "virtiofs"], "share /mnt/share virtiofs rw\n"
    command = ["sh", "-c", f"PATH=/bin:/usr/bin; {SCRIPT}"]
    archive = default_initrd(str(image.image), command, programs(), modules, (), fstab)
    (folder / "initrd").write_bytes(archive)
    words = {"MEMORY": MEMORY, "KERNEL": image.image, "INITRD": folder / "initrd"}
    script = QEMU.replace("CMDLINE", CMDLINE)
    for word, value in words.items():
        script = script.replace(word, str(value))
    daemon = found.command(0, f"{folder}/share")
    daemon = ["--socket-path=/tmp/fs.socket" if "--fd=" in word else word for word in daemon]
    done = lab.run(
        ["sh", "-c", script, "sh", str(folder), *daemon], timeout=LIMIT_S, writable=[str(folder)]
    )
    return done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")


def test_a_shared_folder_passes_what_it_passes_under_qemu(
    lab: Lab, tmp_path: Path, under_qemu: str
) -> None:
    command = [sys.executable, "-m", "pykvm", "boot", str(fetch("6.12-cloud").image), "--any-host"]
    command += ["-m", MEMORY, "--fs", f"{tmp_path},tag=share", "--append", CMDLINE]
    command += [word for program in programs() for word in ("--add", program)]
    command += ["--", "sh", "-c", f"PATH=/bin:/usr/bin; {SCRIPT}"]
    done: subprocess.CompletedProcess[bytes] = lab.run(
        command, timeout=LIMIT_S, writable=[str(tmp_path)]
    )
    ours = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    assert passed(under_qemu) >= {"mapped", "written", "mmap", "rename", "fallocate", "hdd"}
    assert passed(ours) >= passed(under_qemu)
