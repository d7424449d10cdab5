"""What a snapshot is, in words: of which machine, from when, and on what it stands.

Reached from ``pykvm snapshot show``. The state and the files' sizes are checked as by `load`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError
from pykvm.layout import KIB, MIB
from pykvm.snapshot import chain, format
from pykvm.snapshot.disks import check_disks
from pykvm.snapshot.load import read_state

if TYPE_CHECKING:
    from typing import Any

    from pykvm.snapshot.chain import Link


def describe(folder: str | os.PathLike[str], *, verify: bool = False) -> str:
    """The snapshot in `folder`, as lines; with `verify`, all of its memory was compared with its
    checksums. Raises `ConfigError` when it could not be restored, but for disks that changed."""
    links = chain.follow(folder)
    link = links[0]
    try:
        read_state(*link)
        rows = [*_about(link.head), *_disks(link), *_chain(links)]
    except chain.NONSENSE as error:
        raise format.damaged(link.folder, f"{format.HEAD}: {error!r}") from None
    chain.open_stack(links, verify=verify).close()
    memory = "all of it read, and as it was" if verify else "there; --verify reads all of it"
    rows.append(("memory", memory))
    return "\n".join([f"snapshot {link.folder}", *(f"  {name:9} {text}" for name, text in rows)])


def _about(head: dict[str, Any]) -> list[tuple[str, str]]:
    config = format.decode_config(head["config"])
    when, often = head["saved"].replace("T", " ").replace("Z", " UTC"), int(head["generation"])
    cpus, entry = config.cpus, head["entry"]
    rows = [
        ("saved", f"{when} by pykvm {head['pykvm']}"),
        ("id", f"{head['id']}{' (compacted)' if 'compacted' in head else ''}"),
        ("machine", f"{cpus} vCPU{'s' * (cpus > 1)}, {_size(config.memory)} of memory"),
        ("entered", f"{entry['protocol']}, in {entry['mode']} mode"),
    ]
    if often:
        rows.append(
            ("a copy", f"restored or forked {often} time{'s' * (often > 1)} since its boot")
        )
    return rows


def _disks(link: Link) -> list[tuple[str, str]]:
    rows = []
    for disk in link.head["disks"]:
        try:
            check_disks([disk], link.folder)
            now = "as it was"
        except ConfigError:
            now = "changed since, or gone: a restore needs --disk"
        rows.append(("disk", f"{disk['path']}, {_size(disk['size'])}, {now}"))
    return rows


def _chain(links: list[Link]) -> list[tuple[str, str]]:
    rows = []
    for number, link in enumerate(links):
        status = os.stat(os.path.join(link.folder, format.MEMORY))
        if link.is_full:
            what = f"full: {_size(status.st_blocks * 512)} on disk"
        else:
            changed = sum(region.size for region in link.ranges)
            what = (
                f"differential: {_size(changed)} changed, {_size(status.st_blocks * 512)} on disk"
            )
        rows.append(("itself" if number == 0 else "stands on", f"{link.folder}, {what}"))
    return rows


def _size(size: int) -> str:
    if size < MIB:
        return f"{-(-size // KIB)} KiB"
    return f"{size / MIB:.1f} MiB".replace(".0 ", " ")
