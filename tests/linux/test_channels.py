"""A stock Debian kernel and its host talk by virtio's channels, in the lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.lab import Lab

HERE = Path(__file__).resolve().parent
LIMIT_S = 400  # an emulated machine inside a busy one
CONNECTIONS = 1000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``program("sockets")``: the path of sockets.c, compiled."""
    folder = tmp_path_factory.mktemp("guest")

    def compile_c(name: str) -> str:
        target = str(folder / name)
        command = ["gcc", "-O1", "-static", "-o", target, str(HERE / f"{name}.c")]
        subprocess.run(command, check=True, timeout=60)
        return target

    return compile_c


def test_a_thousand_connections_each_way_echo_by_vsock(
    lab: Lab,
    debian_kernel: Callable[[str], str],
    without_crash: Callable[..., subprocess.CompletedProcess[bytes]],
    program: Callable[[str], str],
    tmp_path: Path,
) -> None:
    sockets = program("sockets")
    boot = f"{sys.executable} -m pykvm boot {debian_kernel('6.12-cloud')} -c 2"
    script = f"""
        cd $(mktemp -d)
        {sockets} host v {CONNECTIONS} &
        host=$!
        {boot} --vsock v --add {sockets} -- {sockets} guest {CONNECTIONS} || exit
        wait $host && [ ! -e v ]
    """
    done = without_crash(lambda: lab.run(["sh", "-c", script], timeout=LIMIT_S))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CONNECTIONS} connections to the guest echoed".encode() in done.stdout
    assert f"{CONNECTIONS} connections to the host echoed".encode() in done.stdout


def test_a_piped_command_keeps_bytes_streams_and_code(
    lab: Lab,
    debian_kernel: Callable[[str], str],
    without_crash: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    boot = f"{sys.executable} -m pykvm boot {debian_kernel('6.12-cloud')} --timeout {LIMIT_S - 40}"
    command = "busybox cat; echo apart >&2; echo noted >/dev/virtio-ports/note; exit 7"
    script = f"""
        cd $(mktemp -d)
        head -c 1000000 /dev/urandom >in
        cat in | {{
            {boot} --pipe --port note=file:note --add /bin/busybox -- \\
                busybox sh -c '{command}' 2>err
            echo $? >code
        }} | cat >out
        cat code err note
        cmp in out
    """
    done = without_crash(lambda: lab.run(["sh", "-c", script], timeout=LIMIT_S))
    assert (done.returncode, done.stdout) == (0, b"7\napart\nnoted\n"), done.stdout + done.stderr
