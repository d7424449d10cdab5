"""Checkpoints of a Linux guest whose file system is in use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pykvm.boot.kernels import fetch
from pykvm.lab import Lab

LIMIT_S = 1800


def test_file_system_goes_back_with_the_guest(lab: Lab, tmp_path: Path) -> None:
    image = tmp_path / "image"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image), "32M"], check=True)
    script = Path(__file__).parent / "checkpoints_in_linux.py"
    command = [sys.executable, str(script), str(fetch("6.12-cloud").image), str(image)]
    done = lab.run(command, timeout=LIMIT_S)
    assert re.fullmatch(rb"\d+ checkpoints, \d+ KiB\n", done.stdout), done
    print(done.stdout.decode())
