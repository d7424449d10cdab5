"""How a lab is started, and how the kept one is found.

Reached from `client` and `cli`. A *private* lab is its user's alone and ends with it. The *kept*
lab has a socket in the runtime directory, by which others find it; it ends when nobody has used it
for some time, or on `stop_kept`. Both are a process of their own: `supervisor`.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pykvm import cache
from pykvm.lab.machine import Plan, Spec
from pykvm.lab.wire import Kind, pack

if TYPE_CHECKING:
    import subprocess

    from pykvm.boot.apt import Progress
    from pykvm.boot.kernels import Note

IDLE_S: Final = 600.0


def spawn(control: socket.socket, plan: Plan, idle_s: float | None) -> subprocess.Popen[bytes]:
    """Start a supervisor, out of reach of this terminal's signals; kept if `idle_s` is given."""
    import subprocess

    package = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    idle = "" if idle_s is None else str(idle_s)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", f"{__package__}.supervisor"),
            *(str(control.fileno()), idle, plan.dumps()),
        ],
        pass_fds=[control.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if idle_s is None else subprocess.DEVNULL,
        cwd="/",
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )


def start_kept(spec: Spec, idle_s: float, progress: Progress | None, note: Note | None) -> None:
    """Start the kept lab as `spec` says, unless it runs. It is not ready when this returns."""
    if is_kept():
        return
    plan = Plan.make(spec, progress, note)
    path = _socket_path()
    with cache.locked("lab"):  # two may come at once
        if is_kept():
            return
        path.unlink(missing_ok=True)  # of one that was killed
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(str(path))
            control.listen()
            spawn(control, plan, idle_s)


def is_kept() -> bool:
    """Tell whether a kept lab runs, or is about to."""
    sock = connect_kept()
    if sock is not None:
        sock.close()
    return sock is not None


def stop_kept() -> bool:
    """End the kept lab and return when it has ended. Returns False when there is none."""
    sock = connect_kept()
    if sock is None:
        return False
    with sock, suppress(ConnectionError):
        sock.sendall(pack(Kind.STOP))
        while sock.recv(4096):
            pass
    return True


def _socket_path() -> Path:
    """Return where the kept lab listens, in a directory that only this user may enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    directory = Path(runtime, "pykvm") if os.access(runtime, os.W_OK) else cache.cache_dir()
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / "lab.sock"


def connect_kept() -> socket.socket | None:
    """Return a socket that leads to the kept lab, or None when there is none."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(_socket_path()))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock
