"""A Debian that debootstrap makes boots to its login prompt, as a disk and as a shared folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.boot.kernels import fetch
from pykvm.lab import Lab

BOOT_S, INSTALL_S = 900, 1800
# Leaves at the prompt: from then on the guest would wait for ever.
UNTIL_PROMPT = r"""
"$@" </dev/null >out 2>err & pid=$!
while kill -0 $pid 2>/dev/null && ! grep -aq 'login:' out; do sleep 1; done
kill -TERM $pid; wait $pid; code=$?
cat out err; exit $code
"""
SIGTERM_CODE = 128 + 15


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest Debian with systemd."""
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("needs debootstrap, and root to run it")
    root = tmp_path_factory.mktemp("debian") / "root"
    command = ["debootstrap", "--variant=minbase", "--include=systemd-sysv,udev"]
    command += ["bookworm", str(root)]
    subprocess.run(command, check=True, timeout=INSTALL_S)
    # An emulated udev may find a terminal too late for systemd, which gives it 90 s.
    (root / "etc/systemd/system.conf.d").mkdir()
    patience = f"[Manager]\nDefaultDeviceTimeoutSec={BOOT_S}\nDefaultTimeoutStartSec={BOOT_S}\n"
    (root / "etc/systemd/system.conf.d/slow.conf").write_text(patience)
    return root


def boot(folder: Path, root: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pykvm", "boot", str(fetch("6.12-cloud").image)]
    command += ["-m", "512M", "--root", str(root), "--timeout", str(BOOT_S)]
    script = f"cd {folder}\n{UNTIL_PROMPT}"
    writable = [str(folder), *([str(root)] if root.is_dir() else [])]
    with Lab() as lab:
        return lab.run(["sh", "-c", script, "sh", *command], timeout=BOOT_S, writable=writable)


@pytest.mark.parametrize("kind", ["disk", "folder"])
def test_a_debian_boots_to_its_login_prompt(tree: Path, tmp_path: Path, kind: str) -> None:
    root = tree
    if kind == "disk":
        root = tmp_path / "disk.img"
        mke2fs = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(root), "1G"]
        subprocess.run(mke2fs, check=True, timeout=BOOT_S)
    done = boot(tmp_path, root)
    assert b"login:" in done.stdout, done.stdout + done.stderr
    assert done.returncode == SIGTERM_CODE
