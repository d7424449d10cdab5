"""Guests that are booted once, and then go on from a snapshot in pykvm's cache.

Reached from `pykvm.pytest`. The snapshot's name is a digest of all that a boot depends on: kernel,
initrd, command line, the rest of the configuration, what was run to prepare it, the host's
processor, pykvm's own files. Processes that want the same one wait for the first, which makes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pykvm
from pykvm.agent.guest import GuestMachine
from pykvm.boot.files import stamp
from pykvm.cache import cache_path, locked
from pykvm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from pykvm.config import MachineConfig

FOLDER: Final = "guests"  # of the cache; it has a folder for each digest
SNAPSHOT: Final = "snapshot"
BOOTED: Final = "boot-seconds"
KEPT: Final = 8  # the latest used: each is as large as the memory that its guest has touched

Commands = Sequence[str | Sequence[str]]
Note = Callable[[str], None]


def boot_once(config: MachineConfig, setup: Commands, timeout: float, note: Note) -> GuestMachine:
    """A machine that is at rest after the commands of `setup`: from the cache, or booted and put
    there. `note` is told why that cannot be. Raises as `GuestMachine.start` and `run`.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(locked(f"{FOLDER}/{digest(config, setup)}"))
        except (HostError, OSError) as error:
            note(f"guests cannot be kept: {error}")
            return boot(config, setup, timeout)
        machine = _restore(folder, note) or _boot_and_save(folder, config, setup, timeout, note)
        with contextlib.suppress(OSError):
            _drop_old(folder)
        return machine


def boot(config: MachineConfig, setup: Commands, timeout: float) -> GuestMachine:
    """The same, always booted."""
    machine = GuestMachine.start(config, timeout)
    try:
        for command in setup:
            machine.run(command, check=True, timeout=timeout)
        machine.rest()
    except BaseException:
        machine.close()
        raise
    return machine


def digest(config: MachineConfig, setup: Commands) -> str:
    """Names all that the guest depends on, in 32 characters."""
    kernel = config.kernel if isinstance(config.kernel, bytes) else Path(config.kernel).read_bytes()
    rest = config._replace(kernel=b"", initrd=())
    sums = [hashlib.sha256(data).digest() for data in (kernel, *_bytes(config.initrd))]
    parts = (sums, rest, list(map(_listed, setup)), _processor(), _program())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _bytes(files: Sequence[Any]) -> list[bytes]:
    return [file if isinstance(file, bytes) else Path(file).read_bytes() for file in files]


def _listed(command: str | Sequence[str]) -> str | list[str]:
    return command if isinstance(command, str) else list(command)


def _processor() -> list[str]:
    """The first one's features, of /proc/cpuinfo, but for its speed at the moment."""
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    return [line for line in first.splitlines() if not line.startswith(("cpu MHz", "bogomips"))]


def _program() -> list[str]:
    """pykvm's version, and the stamps of its files: it may be in the middle of being changed."""
    files = sorted(path for path in Path(pykvm.__path__[0]).rglob("*") if _counts(path))
    return [pykvm.__version__, *(f"{path} {stamp(path.stat())}" for path in files)]


def _counts(path: Path) -> bool:
    return path.suffix in (".py", ".so") or path.name == "init"


# ── the cache ────────────────────────────────────────────────────────────────────────────────────


def _restore(folder: Path, note: Note) -> GuestMachine | None:
    """What was saved, or nothing when it cannot be used."""
    snapshot = folder / SNAPSHOT
    if not snapshot.exists():
        return None
    try:
        machine = GuestMachine.restore(snapshot)
        machine.boot_seconds = float((folder / BOOTED).read_text())
    except (ConfigError, OSError, ValueError) as error:
        note(f"booting anew, because {error}")
        shutil.rmtree(snapshot, ignore_errors=True)
        return None
    os.utime(folder)
    return machine


def _boot_and_save(
    folder: Path, config: MachineConfig, setup: Commands, timeout: float, note: Note
) -> GuestMachine:
    machine = boot(config, setup, timeout)
    try:
        (folder / BOOTED).write_text(f"{machine.boot_seconds}\n")
        machine.machine.snapshot(folder / SNAPSHOT)
    except (ConfigError, HostError, OSError) as error:
        note(f"the guest is not kept: {error}")
    return machine


def _drop_old(used: Path) -> None:
    """Empty what has not been used for longest, also of what a process left that was killed while
    it saved. A machine that runs from it is not disturbed."""
    folders = [path for path in (cache_path() / FOLDER).iterdir() if any(path.iterdir())]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in folders[KEPT:]:
        if folder != used:
            _empty(folder)


def _empty(folder: Path) -> None:
    """Unless somebody works there. The folder itself stays: it is the lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
