"""A real gdb in Debian's kernel: a thousand single steps, none of them lost; a reset."""

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


def test_monitor_reset_boots_linux_again_with_four_vcpus(lab: Lab, tmp_path: Path) -> None:
    kernel = str(fetch("6.12-cloud").image)
    session = Path(__file__).with_name("gdbreset.gdb")
    command = gdbinlab.command(kernel, tmp_path, 0, LIMIT_S - 60, cpus=4, session=session)
    result = lab.run(command, timeout=LIMIT_S, writable=[str(tmp_path)])
    said = (tmp_path / "said").read_text()
    assert re.findall(r"#0 .* in (\w+)", said) == [
        "start_kernel", "__x64_sys_write", "start_kernel", "__x64_sys_write",
    ], said  # fmt: skip
    assert said.count("vCPU 3 [waits for INIT]") == 1, said
    assert b"reached init after" in result.stdout, result
    assert b"pykvm: 4 CPUs" in result.stdout, result
    assert result.returncode == 0
