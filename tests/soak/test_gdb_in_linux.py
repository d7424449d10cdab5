"""A thousand single steps of a real gdb in Debian's kernel, none of them lost."""

from __future__ import annotations

import re
from pathlib import Path

import gdbinlab
from stock import LIMIT_S

from pykvm.boot.kernels import fetch
from pykvm.lab import Lab


def test_a_thousand_steps_in_linux_lose_no_instruction(lab: Lab, tmp_path: Path) -> None:
    kernel = str(fetch("6.12-cloud").image)
    command = gdbinlab.command(kernel, tmp_path, steps=1000, seconds=LIMIT_S - 60)
    result = lab.run(command, timeout=LIMIT_S, writable=[str(tmp_path)])
    said = (tmp_path / "said").read_text()
    assert re.search(r"1000 steps, \d+ places, \d+ indirect, 0 lost", said), said
    assert b"reached init after" in result.stdout, result
