"""Loads a snapshot: a template, or a refusal that says what is wrong.

Reached from `Machine.restore` and ``pykvm restore``. The head and the state are checked always. The
memory's checksums are compared only when the file is not the one that was written: its stamp tells
that in no time (inode, size, times of change, which nobody can set), so that a restore takes no
longer for a guest of gigabytes. A copy, a file that was written to, or `verify`: all of it is read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pykvm.boot.files import stamp
from pykvm.errors import ConfigError
from pykvm.snapshot import capture, format, pages
from pykvm.snapshot.disks import check_disks
from pykvm.snapshot.template import Template

if TYPE_CHECKING:
    from typing import Any

    from pykvm.snapshot.capture import Parts


def load(
    folder: str | os.PathLike[str],
    *,
    clock: str = "stay",
    prefault: bool = False,
    verify: bool = False,
    **changes: Any,
) -> Template:
    """The snapshot in `folder`, for machines to go on from, with `changes` to its configuration
    (`disks`: where they are now; they are taken as they are).

    `clock`: the guest's time stays where it was, or steps over the time since ("step").
    `prefault`: map all of the memory at once. `verify`: compare its checksums in any case.
    Raises `ConfigError` when the snapshot is damaged or does not fit this host.
    """
    folder = os.fspath(folder)
    if clock not in capture.CLOCKS:
        raise ConfigError(f"--clock: {clock!r} is unknown; write {' or '.join(capture.CLOCKS)}")
    head = read_head(folder)
    try:
        config = format.decode_config(head["config"])._replace(**changes)
        entry = format.decode_entry(head["entry"])
        if "disks" not in changes:
            check_disks(head["disks"], folder)
        parts = _read_state(folder, head)
        generation = int(head["generation"])
        memory = _open_memory(folder, head["memory"], config.memory, verify)
    except (LookupError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise format.damaged(folder, f"{format.HEAD}: {error!r}") from None
    template = Template(config, entry, parts, memory, generation=generation)
    template.clock, template.prefault, template.foreign = clock, prefault, True
    return template


def read_head(folder: str) -> dict[str, Any]:
    """The head of the snapshot in `folder`, checked. Raises `ConfigError`."""
    path = os.path.join(folder, format.HEAD)
    try:
        with open(path, "rb") as file:
            data = file.read(format.HEAD_MAX)
    except OSError as error:
        raise ConfigError(
            f"snapshot {folder}: {error.strerror}; name a folder that 'pykvm boot --snapshot' made"
        ) from None
    return format.decode_head(data, folder)


def _read_state(folder: str, head: dict[str, Any]) -> Parts:
    table = head["state"]
    try:
        with open(os.path.join(folder, format.STATE), "rb") as file:
            data = file.read(sum(size for _, size, _ in table) + 1)
    except OSError as error:
        raise format.damaged(folder, f"{format.STATE}: {error.strerror}") from None
    return format.cut_parts(data, table, folder)


def _open_memory(folder: str, memory: dict[str, Any], size: int, verify: bool) -> int:
    path = os.path.join(folder, format.MEMORY)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise format.damaged(folder, f"{format.MEMORY}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not status.st_size == memory["size"] == size:
            raise format.damaged(folder, f"{format.MEMORY} has {status.st_size} bytes")
        if verify or stamp(status) != memory["stamp"]:
            _verify(fd, memory, folder)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _verify(fd: int, memory: dict[str, Any], folder: str) -> None:
    wanted = {int(number): crc for number, crc in memory["crc32"].items()}
    found = pages.checksums(fd, memory["size"])
    for number in sorted(wanted.keys() | found.keys()):
        if wanted.get(number) != found.get(number):
            start = number * pages.PIECE
            raise format.damaged(
                folder, f"{format.MEMORY} from {start:#x} on does not match its checksum"
            )
