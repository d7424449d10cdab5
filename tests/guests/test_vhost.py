"""A guest without an operating system, and a disk that qemu-storage-daemon serves."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pykvm import guest_programs, virtiofsd
from pykvm.config import MachineConfig
from pykvm.console import BytesConsole
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.outcome import Outcome, Reason
from pykvm.virtio.config.disk import FORMATS, DiskConfig

RunGuest = Callable[..., Outcome]
TEXT = b"hello from the disk"
DAEMON = "qemu-storage-daemon"


@pytest.fixture(autouse=True)
def _programs() -> None:
    missing = [name for name in ("qemu-img", DAEMON) if shutil.which(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{missing} are not here")
    if missing:
        pytest.skip(f"needs {missing}: apt-get install qemu-utils qemu-system-common")


def convert(source: Path, target: Path, options: str) -> None:
    subprocess.run(["qemu-img", "convert", *options.split(), source, target], check=True)


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[[str], Path]:
    """A disk of 16 sectors, or as many as the format makes of it, that begins with TEXT."""

    def make(name: str) -> Path:
        raw, image = tmp_path / "raw", tmp_path / f"image.{name}"
        raw.write_bytes(TEXT.ljust(16 * 512, b"\0"))
        convert(raw, image, f"-f raw -O {name}")
        return image

    return make


def passed(outcome: Outcome) -> bool:
    return outcome.reason is Reason.EXIT and outcome.code == 0 and b"FAILED" not in outcome.console


@pytest.mark.parametrize("name", FORMATS[1:])
def test_a_guest_uses_an_image(
    run_guest: RunGuest, make_image: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    image = make_image(name)
    config = DiskConfig(str(image), format=name)
    outcome = run_guest("virtqueue", disks=(config,), cmdline="pci=1 count=5 spare=1")
    assert passed(outcome)
    assert b'it begins with "hello from the disk"' in outcome.console
    convert(image, tmp_path / "out", f"-f {name} -O raw")
    written = (tmp_path / "out").read_bytes()[512 : 512 + len(TEXT)]
    assert written == bytes(byte ^ 0xFF for byte in TEXT)


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_driver_starts_and_resets_it(
    run_guest: RunGuest, make_image: Callable[[str], Path], transport: str
) -> None:
    config = DiskConfig(str(make_image("qcow2")), format="qcow2", cache="unsafe", queues=4)
    cmdline = f"pci={int(transport == 'pci')} count=20 resets=20 spare=21"
    assert passed(run_guest("virtqueue", disks=(config,), transport=transport, cmdline=cmdline))


def test_a_read_only_image_stays_as_it_is(
    run_guest: RunGuest, make_image: Callable[[str], Path]
) -> None:
    image = make_image("qcow2")
    before = image.read_bytes()
    config = DiskConfig(str(image), read_only=True, format="qcow2")
    outcome = run_guest("virtqueue", disks=(config,), cmdline="pci=1 spare=1")
    assert b"FAILED: sector 1 is written" in outcome.console
    assert image.read_bytes() == before


def children() -> set[int]:
    """The processes that this one has started and not waited for."""
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }


@pytest.fixture
def daemons() -> Iterator[Callable[[], set[int]]]:
    """The storage daemons that were started since; none may be left at the end."""
    before = children()
    yield lambda: children() - before
    assert children() - before == set()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_daemon_that_is_killed_leaves_errors_and_the_machine_goes_on(
    make_image: Callable[[str], Path],
    daemons: Callable[[], set[int]],
    capfd: pytest.CaptureFixture[str],
    transport: str,
) -> None:
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=16 << 20,
        cmdline=f"pci={int(transport == 'pci')} count=10000",
        disks=(DiskConfig(str(make_image("qcow2")), format="qcow2"),),
        transport=transport,
    )
    with Machine(config) as vm:
        (pid,) = daemons()
        killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
        killer.start()
        outcome = vm.run(timeout=60, console=BytesConsole(b""))
        killer.join()
    assert outcome.reason is Reason.EXIT
    assert b"FAILED: sector 1 is written" in outcome.console
    assert b"ok: there is nothing behind the end" in outcome.console
    assert "was ended by signal 9; what the guest asks of it fails now" in capfd.readouterr().err


@contextmanager
def own_backend(image: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A storage daemon that listens at `folder`/socket."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    node = f"driver=qcow2,node-name=d,file.driver=file,file.filename={image}"
    export = f"vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={path},writable=on"
    with subprocess.Popen([DAEMON, "--blockdev", node, "--export", export]) as daemon:
        while not path.exists():
            assert daemon.poll() is None
            time.sleep(0.01)
        yield daemon
        daemon.terminate()


def test_a_back_end_of_the_users_is_found_at_its_socket(
    run_guest: RunGuest, make_image: Callable[[str], Path], tmp_path: Path
) -> None:
    config = DiskConfig("", vhost_user=str(tmp_path / "socket"))
    with own_backend(make_image("qcow2"), tmp_path):
        assert passed(run_guest("virtqueue", disks=(config,), cmdline="pci=1 count=5 spare=1"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_guest_waits_for_a_back_end_that_is_started_again(
    make_image: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    how: signal.Signals,
) -> None:
    image = make_image("qcow2")
    config = MachineConfig(
        kernel=guest_programs.path("virtqueue"),
        memory=16 << 20,
        cmdline="pci=1 count=4000 spare=4",  # a start of each, and twice when the first is lost
        disks=(DiskConfig("", vhost_user=str(tmp_path / "socket"), reconnect=1),),
    )
    with ExitStack() as stack:
        first = stack.enter_context(own_backend(image, tmp_path))

        def replace() -> None:
            first.send_signal(how)
            first.wait()
            stack.enter_context(own_backend(image, tmp_path))

        with Machine(config) as vm:
            replacing = threading.Timer(0.2, replace)
            replacing.start()
            outcome = vm.run(timeout=60, console=BytesConsole(b""))
            replacing.join()
    log = capfd.readouterr().err
    assert passed(outcome), outcome
    assert "; what the guest asks of it waits until it is back" in log
    assert f"the back end at {tmp_path}/socket is back" in log


def open_files() -> int:
    """How many sockets, pipes and eventfds are open."""
    names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return sum(kind in name for name in names for kind in ("socket:", "pipe:", "anon_inode:"))


def test_nothing_is_left(
    run_guest: RunGuest, make_image: Callable[[str], Path], daemons: Callable[[], set[int]]
) -> None:
    config = DiskConfig(str(make_image("qcow2")), format="qcow2")
    run_guest("virtqueue", disks=(config,), cmdline="pci=1 spare=1")
    before = open_files()
    for _ in range(2):
        assert passed(run_guest("virtqueue", disks=(config,), cmdline="pci=1 spare=1"))
    assert open_files() == before
    assert daemons() == set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_serves_a_guest_ends_with_a_pykvm_that_is_killed(
    make_image: Callable[[str], Path], tmp_path: Path, how: signal.Signals
) -> None:
    boot = [sys.executable, "-m", "pykvm", "boot", guest_programs.path("echo")]
    boot += ["--disk", f"{make_image('qcow2')},format=qcow2"]
    programs = {DAEMON}
    if os.geteuid() == 0 and virtiofsd.find() is not None:
        for name, options in (("shared", ""), ("read", ",ro")):
            (tmp_path / name).mkdir()
            boot += ["--fs", f"{tmp_path / name},tag={name}{options}"]
        programs.add("virtiofsd")
    with subprocess.Popen(
        boot, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as pykvm:
        assert pykvm.stdout is not None
        assert pykvm.stdout.read(1)  # the guest runs
        found = _programs_with(tmp_path)
        pykvm.send_signal(how)
        pykvm.wait(60)
    assert {name for name, _ in found} == programs
    for _, pid in found:
        assert _ends(pid)


def _programs_with(folder: Path) -> list[tuple[str, int]]:
    """The back ends, by name, that have something in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = os.path.basename(words[0])
        if name in (DAEMON, "virtiofsd") and str(folder) in " ".join(words):
            found.append((name, int(process.name)))
    return found


def _ends(pid: int) -> bool:
    """Wait for the end of a process that is nobody's child here."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 60)[0])
    finally:
        os.close(fd)


def test_what_the_daemon_refuses_is_said(
    run_guest: RunGuest, tmp_path: Path, daemons: Callable[[], set[int]]
) -> None:
    path = tmp_path / "a, strange \"name'"
    path.write_bytes(bytes(8192))
    with pytest.raises(ConfigError, match=f"--disk: .*: {DAEMON}: Image is not in qcow2 format"):
        run_guest("virtqueue", disks=(DiskConfig(str(path), format="qcow2"),))
    assert daemons() == set()


def test_a_missing_daemon_is_named_with_its_package(
    run_guest: RunGuest, make_image: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiskConfig(str(make_image("qcow2")), format="qcow2")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=f"format=qcow2 needs {DAEMON}.*qemu-system-common"):
        run_guest("virtqueue", disks=(config,))
