"""Saves a machine to a folder: all of it, or nothing that could be mistaken for it.

Reached from `Machine.snapshot`. Everything is written to a folder of a temporary name beside the
one asked for, brought to the disk (fsync), and renamed; a snapshot that was there before changes
places with it in one step, then goes. Read `format` for the files, `capture` for the order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from pykvm import __version__
from pykvm._core import lib
from pykvm.boot.files import stamp
from pykvm.errors import ConfigError, HostError
from pykvm.snapshot import capture, chain, format, pages
from pykvm.snapshot.chain import checksum_of
from pykvm.snapshot.diff import Base, note
from pykvm.snapshot.disks import copy_name, describe_disks, written_disks

if TYPE_CHECKING:
    from typing import Any, Self

    from pykvm.machine import Machine
    from pykvm.memory import Region
    from pykvm.snapshot.capture import Parts
    from pykvm.snapshot.diff import Lineage
    from pykvm.snapshot.layers import Stack
    from pykvm.virtio.blk import Blk

TICK_S: Final = 0.02  # longer than the clock that files are stamped with takes to move on


class Save:
    """One snapshot on its way into `folder`. Its steps: `capture`, at rest; then `commit`.

    `base`: the folder of a snapshot of the same machine, or that it goes on from; only the pages
    that have changed since are saved, and restoring needs the base. `disks`: copies of the disks
    that the guest may write to are saved, too. A context manager: what was not committed is
    removed. Raises `ConfigError` when the folder is not to be replaced or the base is none, and
    `HostError` when the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        base: str | os.PathLike[str] | None = None,
        *,
        disks: bool = False,
    ) -> None:
        self.folder = os.path.abspath(folder)
        check_target(self.folder)
        parent, name = os.path.split(self.folder)
        self._temporary = os.path.join(parent, f".{name}.{os.getpid()}-{time.monotonic_ns():x}")
        self._lineage: Lineage | None = None  # of a machine
        self._with_disks = disks
        with contextlib.ExitStack() as opened, self._explained():
            self._base = None if base is None else Base(base, self.folder)
            if self._base is not None:
                opened.callback(self._base.close)
            _remove_leftovers(parent, name)
            os.mkdir(self._temporary, 0o700)  # a guest's memory may hold secrets
            opened.pop_all()

    def capture(self, machine: Machine) -> None:
        """Note the state of a machine at rest; write its memory."""
        disks = written_disks(machine) if self._with_disks else {}
        try:
            copies = {str(number): self._copy(number, disk) for number, disk in disks.items()}
            self._parts = capture.capture(machine)
        finally:
            for disk in disks.values():
                disk.is_copied = False
        ranges: list[Region] = []
        with self._explained(), self._create(format.MEMORY) as fd:
            os.truncate(fd, machine.memory.size)
            if self._base is None:
                pages.copy(machine.memory, fd)
            else:
                ranges = self._base.save(machine, fd)
        self._head: dict[str, Any] = {
            "id": os.urandom(8).hex(),
            "pykvm": __version__,
            "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "generation": machine.generation,
            "entry": format.encode_entry(machine.entry),
            "config": format.encode_config(machine.config),
            "disks": describe_disks(machine),
            "memory": {"size": machine.memory.size},
        }
        if self._base is not None:
            self._head["base"] = self._base.reference
            self._head["memory"]["pages"] = ranges
        if copies:
            self._head["copies"] = copies
        self._lineage = machine.lineage
        note(machine, self._head["id"])

    def _copy(self, number: int, disk: Blk) -> dict[str, Any]:
        """Copy a disk, and tell it so; returns the head's entry."""
        with self._explained(), self._create(copy_name(number)) as fd:
            disk.copy_to(fd)
            disk.is_copied = True
            return {"size": os.fstat(fd).st_size}

    def flatten(self, whole: Stack, parts: Parts, head: dict[str, Any], folder: str) -> None:
        """Instead of `capture`: take all the memory of a chain, and the rest from the snapshot in
        `folder`, which is the last of it."""
        for number, copy in head.get("copies", {}).items():
            name, size = copy_name(number), int(copy["size"])
            source = chain.open_whole(folder, name, copy, size, verify=True)
            try:
                with self._explained(), self._create(name) as fd:
                    pages.copy_file(source, fd, size)
            finally:
                os.close(source)
        with self._explained(), self._create(format.MEMORY) as fd:
            os.truncate(fd, whole.size)
            for offset, data in whole.pieces():
                pages.write(fd, offset, data)
        self._parts, self._head = parts, {**head, "memory": {"size": whole.size}}

    def commit(self) -> None:
        """Bring it all to the disk and give it its name. The machine may run meanwhile."""
        with self._explained():
            self._finish(format.MEMORY, self._head["memory"])
            for number, copy in self._head.get("copies", {}).items():
                self._finish(copy_name(number), copy)
            with self._create(format.STATE) as fd:
                pages.write(fd, 0, memoryview(b"".join(self._parts.values())))
                os.fsync(fd)
            self._head["state"] = format.describe_parts(self._parts)
            head = format.complete_head(self._head)
            with self._create(format.HEAD) as fd:
                pages.write(fd, 0, memoryview(format.encode_head(head)))
                os.fsync(fd)
            _sync_folder(self._temporary)
            self._rename()
            _sync_folder(os.path.dirname(self.folder))
        if self._lineage is not None:
            noted = self._lineage[head["id"]]
            self._lineage[head["id"]] = noted._replace(checksum=head["checksum"])

    def _finish(self, name: str, entry: dict[str, Any]) -> None:
        """Into a file's entry of the head: checksums, and a stamp by which `load` knows that the
        file was not touched since."""
        fd = os.open(os.path.join(self._temporary, name), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            if "pages" in entry:
                entry["pages"] = [[*place, checksum_of(fd, *place)] for place in entry["pages"]]
            else:
                crcs = pages.checksums(fd, entry["size"])
                entry["piece"] = pages.PIECE
                entry["crc32"] = {str(number): crc for number, crc in crcs.items()}  # as in JSON
            os.fchmod(fd, 0o400)
            while time.time_ns() - os.fstat(fd).st_ctime_ns < TICK_S * 1e9:
                time.sleep(TICK_S)
            entry["stamp"] = stamp(os.fstat(fd))
        finally:
            os.close(fd)

    def _rename(self) -> None:
        try:
            os.rename(self._temporary, self.folder)  # the folder is not there yet, or empty
        except OSError:
            result = lib.pk_file_exchange(os.fsencode(self._temporary), os.fsencode(self.folder))
            if result < 0:
                raise OSError(-result, os.strerror(-result)) from None
            shutil.rmtree(self._temporary)

    @contextlib.contextmanager
    def _create(self, name: str) -> Any:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(os.path.join(self._temporary, name), flags, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except OSError as error:
            raise HostError(
                f"snapshot {self.folder}: {error.strerror}; nothing was saved, and the guest goes "
                "on; choose another folder or make room"
            ) from None

    def close(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        if self._base is not None:
            self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_target(folder: str) -> None:
    """Raises `ConfigError` unless a snapshot may go there: it replaces nothing but another one."""
    folder = os.path.abspath(folder)
    if not os.path.isdir(os.path.dirname(folder)):
        raise ConfigError(f"snapshot {folder}: {os.path.dirname(folder)} is no folder; make it")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(f"snapshot {folder}: a file is there; name a folder") from None
    if names and format.HEAD not in names:
        raise ConfigError(
            f"snapshot {folder}: the folder holds other things than a snapshot; name another"
        )


def _remove_leftovers(parent: str, name: str) -> None:
    """What processes left behind that were killed while they saved a snapshot of this name."""
    for other in os.listdir(parent):
        if not other.startswith(f".{name}."):
            continue
        pid, dash, _ = other[len(name) + 2 :].partition("-")
        if dash and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(os.path.join(parent, other), ignore_errors=True)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
