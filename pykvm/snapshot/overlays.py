"""What a guest has written to overlays that end with its machine goes with a template in memory.

Reached from `template`, for forks, and from `reset`. Each copy of the machine has an overlay of its
own, which begins with those clusters. A snapshot on disk has copies of the disks instead (`disks`).
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING
from pykvm.snapshot import capture
from pykvm.snapshot.disks import served_disks

if TYPE_CHECKING:
    from pykvm.machine import Machine
    from pykvm.snapshot.capture import Parts
    from pykvm.virtio.blk import Blk
    from pykvm.virtio.overlay import Overlay

Overlays = dict[int, "Overlay"]  # by the disk's number


def _dropped(machine: Machine) -> dict[int, tuple[Blk, Overlay]]:
    """The disks whose overlay ends with the machine."""
    return {
        number: (disk, disk.overlay)
        for number, disk in served_disks(machine).items()
        if disk.overlay is not None and not disk.overlay.is_kept
    }


def are_written(machine: Machine) -> bool:
    """Whether there is anything in them."""
    return any(overlay.count() for _, overlay in _dropped(machine).values())


def capture_all(machine: Machine) -> tuple[Parts, Overlays]:
    """`capture` of a machine at rest, and what is in those overlays, which the caller closes."""
    copies: Overlays = {}
    disks = _dropped(machine)
    try:
        for number, (disk, overlay) in disks.items():
            if overlay.count():
                copies[number] = overlay.clone()
                disk.is_copied = True
        return capture.capture(machine), copies
    except BaseException:
        close(copies)
        raise
    finally:
        for disk, _ in disks.values():
            disk.is_copied = False


def assign(machine: Machine, overlays: Overlays) -> None:
    """Let the disks of a machine at rest have what they had. One that is another now stays so."""
    for number, (_, overlay) in (_dropped(machine) if overlays else {}).items():
        if number in overlays:
            overlay.assign(overlays[number])


def close(overlays: Overlays) -> None:
    """Give them up. Safe to call twice."""
    while overlays:
        overlays.popitem()[1].close(durable=False)
