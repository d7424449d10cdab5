"""Loads a snapshot: a template, or a refusal that says what is wrong.

Reached from `Machine.restore` and ``pykvm restore``. The head and the state are checked always. The
memory's checksums are compared only when the file is not the one that was written: its stamp tells
that in no time (inode, size, times of change, which nobody can set), so that a restore takes no
longer for a guest of gigabytes. A copy, a file that was written to, or `verify`: all of it is read.
"""

from __future__ import annotations

import os

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.snapshot import capture, chain, format
from pykvm.snapshot.diff import lineage_of
from pykvm.snapshot.disks import check_disks, use_copies
from pykvm.snapshot.template import IDENTITIES, Template, changed

if TYPE_CHECKING:
    from typing import Any

    from pykvm.snapshot.capture import Parts
    from pykvm.snapshot.lazy import Source


def load(
    folder: str | os.PathLike[str],
    *,
    clock: str = "stay",
    prefault: bool = False,
    lazy: bool = False,
    verify: bool = False,
    identity: str = "new",
    **changes: Any,
) -> Template:
    """The snapshot in `folder`, for machines to go on from, with `changes` to its configuration
    (see `repoint`; a disk that is named anew is taken as it is).

    `identity`: MACs and CID that the user did not choose are other ones ("new"), or as they were
    ("keep").
    `clock`: the guest's time stays where it was, or steps over the time since ("step").
    `prefault`: map all of the memory at once. `lazy`: read it, and compare its checksums, piece by
    piece when the guest first needs it. `verify`: compare them all at once, in any case.
    Raises `ConfigError` when the snapshot is damaged or does not fit this host.
    """
    if clock not in capture.CLOCKS:
        raise ConfigError(f"--clock: {clock!r} is unknown; write {' or '.join(capture.CLOCKS)}")
    if identity not in IDENTITIES:
        raise ConfigError(f"--identity: {identity!r} is unknown; write {' or '.join(IDENTITIES)}")
    if lazy and prefault:
        raise ConfigError(
            "--lazy: --prefault wants all of the memory at once; leave one of them out"
        )
    links = chain.follow(folder)
    folder, head = links[0]
    try:
        config, disks = changed(format.decode_config(head["config"]), changes)
        entry = format.decode_entry(head["entry"])
        noted = dict(zip(range(len(config.disks)), head["disks"], strict=True))
        if "copies" in head:
            config, disks = use_copies(config, head, disks, folder, verify)
        check_disks([noted[number] for number in sorted(disks)], folder)
        parts = read_state(folder, head)
        generation = int(head["generation"])
        if links[0].size != config.memory:
            raise ValueError("two sizes of the memory")
    except chain.NONSENSE as error:
        raise format.damaged(folder, f"{format.HEAD}: {error!r}") from None
    memory = chain.open_stack(links, verify=verify, lazy=lazy)
    template = Template(
        config, entry, parts, memory.fd, generation=generation, layers=memory.layers
    )
    template.lineage = lineage_of(links)
    if lazy:
        try:
            template.lazy = _source(links[-1], memory.fd)
        except BaseException:
            template.close()
            raise
    template.clock, template.prefault, template.foreign = clock, prefault, True
    template.identity = identity
    return template


def _source(full: chain.Link, fd: int) -> Source:
    from pykvm.snapshot.lazy import Source

    try:
        return Source(full.folder, fd, full.head["memory"])
    except chain.NONSENSE as error:
        raise format.damaged(full.folder, f"{format.HEAD}: {error!r}") from None


def read_state(folder: str, head: dict[str, Any]) -> Parts:
    """The state's parts, checked. Raises `ConfigError`, and a `chain.NONSENSE` for the table's."""
    table = head["state"]
    try:
        with open(os.path.join(folder, format.STATE), "rb") as file:
            data = file.read(sum(size for _, size, _ in table) + 1)
    except OSError as error:
        raise format.damaged(folder, f"{format.STATE}: {error.strerror}") from None
    return format.cut_parts(data, table, folder)
