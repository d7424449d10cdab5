"""A stock Debian kernel and its host talk by virtio's channels, in the lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
GUEST_S = 180  # less than the lab gives a command
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
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
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
    done = in_lab(["sh", "-c", script])
    assert f"{CONNECTIONS} connections to the guest echoed".encode() in done.stdout
    assert f"{CONNECTIONS} connections to the host echoed".encode() in done.stdout


def test_a_piped_command_keeps_bytes_streams_and_code(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
) -> None:
    boot = f"{sys.executable} -m pykvm boot {debian_kernel('6.12-cloud')} --timeout {GUEST_S}"
    command = "busybox cat; echo apart >&2; echo noted >/dev/virtio-ports/note; exit 7"
    script = f"""
        cd $(mktemp -d)
        head -c 1000000 /dev/urandom >in
        cat in | {{
            {boot} --pipe --port note=file:note --add /bin/busybox -- \\
                busybox sh -c '{command}' 2>err
            echo $? >code
        }} | cat >out
        cat err note
        cmp in out && echo the same
        exit $(cat code)
    """
    done = in_lab(["sh", "-c", script], code=7)
    assert done.stdout == b"apart\nnoted\nthe same\n", done


@pytest.mark.parametrize(("name", "transport"), [("6.12-cloud", "pci"), ("6.1-cloud", "mmio")])
def test_the_console_is_hvc0_for_who_asks_for_it(
    in_lab: Callable[..., subprocess.CompletedProcess[bytes]],
    debian_kernel: Callable[[str], str],
    name: str,
    transport: str,
) -> None:
    """The one kernel has the driver built in, the other as a module."""
    session = f"{sys.executable} {HERE / 'hvcsession.py'} $(mktemp -d)"
    in_lab(["sh", "-c", f"{session} {debian_kernel(name)} {transport}"])
