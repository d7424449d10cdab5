"""A lab from its user's side: where commands can be run.

Reached from `pykvm.lab` (the Python API), `foreground` and `cli`. Read `start` for private and kept
labs, `supervisor` for who is at the other end of a connection.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from pykvm import cache
from pykvm.errors import ConfigError, HostError
from pykvm.lab.machine import Plan, Spec
from pykvm.lab.start import IDLE_S, connect_kept, is_kept, spawn, start_kept
from pykvm.lab.wire import PLAIN, U32, WINDOW, ExecFlags, Frame, Kind, Reader, pack, pack_exec

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

    from pykvm.boot.apt import Progress
    from pykvm.boot.kernels import Note

CHUNK: Final = 64 << 10
STARTS: Final = 3  # kernels rewrite their own instructions while they boot, and QEMU's TCG seldom
# lets another CPU run a half-written one: the lab's kernel has died of that, and not twice


class LabEndedError(HostError):
    """The lab ended, or did not start. The message says why."""


class Connection:
    """The way of one command into a lab and back."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = Reader()
        self._uncounted = [0, 0, 0]  # bytes taken of each stream that the sender does not know of

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, kind: Kind, arg: int = 0, data: bytes = b"") -> None:
        """Send one frame. The supervisor always reads, so this does not wait long."""
        self.send_packed(pack(kind, arg, data))

    def send_packed(self, frame: bytes) -> None:
        """Send the bytes of a frame."""
        with suppress(ConnectionError):  # `receive` says why
            self.socket.sendall(frame)

    def took(self, stream: int, size: int) -> None:
        """Let the command write `size` bytes more to `stream`, of which so many have been used."""
        self._uncounted[stream] += size
        if self._uncounted[stream] >= WINDOW // 2:
            self.send(Kind.CREDIT, stream, U32.pack(self._uncounted[stream]))
            self._uncounted[stream] = 0

    def receive(self) -> list[Frame]:
        """Wait for data and return the frames it completes. Raises `LabEndedError`."""
        try:
            data = self.socket.recv(CHUNK)
        except ConnectionError:
            data = b""
        if not data:
            raise LabEndedError("the lab ended without a word")
        frames = list(self._reader.feed(data))
        for frame in frames:
            if frame.kind == Kind.FAIL:
                raise LabEndedError(f"the lab ended: {frame.data.decode()}")
        return frames


class Lab:
    """An emulated AMD machine with this host's file system, where commands can be run.

    A context manager. Several threads may `run` commands in it at the same time.
    """

    def __init__(
        self, spec: Spec | None = None, *, keep: bool = False, idle_s: float = IDLE_S
    ) -> None:
        """Describe a private lab, or the kept one.

        When the kept one runs already, it is taken as it is. Otherwise it is started as `spec`
        says, and ends when nobody has used it for `idle_s` seconds.
        """
        self._spec = spec or Spec()
        self.kept = keep
        self._idle_s = idle_s
        self._control: socket.socket | None = None  # a private lab's, and its process
        self._supervisor: subprocess.Popen[bytes] | None = None

    def runs(self) -> bool:
        """Tell whether there is no need to `start` it."""
        return self._control is not None or (self.kept and is_kept())

    def start(self, progress: Progress | None = None, note: Note | None = None) -> None:
        """Return when the lab is ready. Raises `HostError` when this host cannot have one."""
        for _ in range(STARTS - 1):
            try:
                return self._start(progress, note)
            except LabEndedError as error:
                if note is not None:
                    note(f"starting the lab again: {str(error).splitlines()[0]}")
        return self._start(progress, note)

    def _start(self, progress: Progress | None, note: Note | None) -> None:
        if self.kept:
            start_kept(self._spec, self._idle_s, progress, note)
        else:
            plan = Plan.make(self._spec, progress, note)
            self._control, theirs = socket.socketpair()
            with theirs:
                self._supervisor = spawn(theirs, plan, None)
        try:
            self.connect().socket.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End a private lab and wait until it has ended. A kept one stays."""
        if self._control is not None and self._supervisor is not None:
            self._control.close()
            self._supervisor.wait()
            self._control = None

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> Connection:
        """Return a connection to the lab that is ready for EXEC. Raises `LabEndedError`."""
        if self.kept:
            ours = connect_kept()
        elif self._control is not None:
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._control, [b"c"], [theirs.fileno()])
        else:
            ours = None
        if ours is None:
            raise LabEndedError("the lab is not running")
        connection = Connection(ours)
        try:
            while not connection.receive():  # READY comes first, and alone
                pass
        except BaseException:
            ours.close()
            raise
        return connection

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        writable: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `argv` to its end, as `subprocess.run(argv, capture_output=True)` does here.

        `timeout` is in seconds and raises `subprocess.TimeoutExpired`, after which the command and
        all it has started is killed. What it writes is seen here below `cwd` and `writable` only.
        """
        import subprocess

        deadline = None if timeout is None else monotonic() + timeout
        rest, credit = memoryview(input), WINDOW
        output = {1: bytearray(), 2: bytearray()}
        with self.connect() as connection:
            connection.send_packed(exec_frame(argv, cwd, env, writable))
            stdin_open = True
            while True:
                try:
                    if deadline is not None:
                        connection.socket.settimeout(max(1e-3, deadline - monotonic()))
                    while stdin_open and (credit or not rest):
                        part = rest[: min(credit, CHUNK)]
                        connection.send(Kind.DATA if part else Kind.CLOSE, 0, bytes(part))
                        rest, credit, stdin_open = rest[len(part) :], credit - len(part), bool(part)
                    frames = connection.receive()
                except TimeoutError:
                    streams = bytes(output[1]), bytes(output[2])
                    raise subprocess.TimeoutExpired(argv, timeout or 0, *streams) from None
                for frame in frames:
                    match frame.kind:
                        case Kind.DATA:
                            output[frame.arg] += frame.data
                            connection.took(frame.arg, len(frame.data))
                        case Kind.CREDIT:
                            credit += U32.unpack(frame.data)[0]
                        case Kind.CLOSE:
                            stdin_open = False
                        case Kind.EXIT:
                            code = exit_code(frame)
                            return subprocess.CompletedProcess(
                                argv, code, bytes(output[1]), bytes(output[2])
                            )


def exec_frame(
    argv: Sequence[str],
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    writable: Sequence[str] = (),
    flags: ExecFlags = PLAIN,
    winsize: tuple[int, int] = (0, 0),
) -> bytes:
    """Return the frame that runs `argv`, in this process's directory and environment by default.

    The command writes for real below the working directory, `writable` and pykvm's own cache; and
    never below /, which is the whole host, unless `writable` names its parts.
    """
    try:
        cwd = cwd or os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current directory is gone; change to another one") from None
    environment = {**(os.environ if env is None else env), "PYKVM_LAB": "1"}
    paths = [cwd, *writable, str(cache.cache_dir())]
    shares = set(map(os.path.realpath, paths)) - {"/"}
    for path in shares:
        if not os.path.isdir(path):
            raise ConfigError(f"--write {path}: not a directory")
    umask = os.umask(0)
    os.umask(umask)
    return pack_exec(argv, environment, cwd, sorted(shares), flags, winsize, umask)


def exit_code(exit_frame: Frame) -> int:
    """Return the exit code that an EXIT frame has, or minus the signal, as `subprocess` has it."""
    return os.waitstatus_to_exitcode(U32.unpack(exit_frame.data)[0])
