"""What disks had at each of a machine's checkpoints: what was written to their overlays.

Reached from `pykvm.checkpoints`. Their memory is kept the other way round; but an overlay only
grows, so each has what was written since the one before, and the first has all::

    first    [=======]..[==]......     all that the overlay had
    next     ...[=].........[=]...     over that, what was written since
    now      the overlay of the machine itself

The oldest is forgotten by being brought up to the next. Read `overlays` for forks, which take all.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING
from pykvm.snapshot import capture, overlays
from pykvm.snapshot.disks import written_disks
from pykvm.virtio.config.disk import DROPPED

if TYPE_CHECKING:
    from pykvm.config import MachineConfig
    from pykvm.machine import Machine
    from pykvm.snapshot.capture import Parts
    from pykvm.snapshot.overlays import Overlays
    from pykvm.virtio.overlay import Overlay


class _Written:
    """To one disk, up to a checkpoint."""

    def __init__(self, overlay: Overlay, is_all: bool) -> None:
        self.overlay = overlay
        self.size = overlay.size
        self.is_all = is_all  # and not only what was written since the checkpoint before


class DiskHistory:
    """Of one machine's disks, oldest checkpoint first. Raises `ConfigError` for a disk whose
    content would not be kept."""

    def __init__(self, machine: Machine) -> None:
        self._moments: list[dict[int, _Written]] = []  # by the disk's number
        self._whole = True  # what is taken next: there is nothing that it could stand on
        for number, disk in written_disks(machine).items():
            if disk.overlay is None:
                raise ConfigError(
                    f"checkpoints: the guest may write to {disk.config.path}, which would not go "
                    f"back with it; add overlay=on to the disk (vd{chr(ord('a') + number)}), or ro"
                )

    def take(self, machine: Machine) -> Parts:
        """Keep what the disks of a machine at rest have; returns `capture` of it. When it fails,
        the older ones are as they were."""
        disks = written_disks(machine)
        moment: dict[int, _Written] = {}
        try:
            for number, disk in disks.items():
                assert disk.overlay is not None
                moment[number] = _Written(*disk.overlay.take(all=self._whole))
                disk.is_copied = True
            parts = capture.capture(machine)
        except BaseException:
            _close(moment)
            self._whole = True  # what was taken is nowhere now
            raise
        finally:
            for disk in disks.values():
                disk.is_copied = False
        self._moments.append(moment)
        self._whole = False
        return parts

    def at(self, index: int) -> Overlays:
        """Overlays that have what the disks had then; the caller closes them."""
        found: Overlays = {}
        try:
            for number in self._moments[index]:
                found[number] = self._merged(number, index)
        except BaseException:
            overlays.close(found)
            raise
        return found

    def _merged(self, number: int, index: int) -> Overlay:
        own = [moment[number] for moment in self._moments[: index + 1]]
        first = max(place for place, written in enumerate(own) if written.is_all)
        merged = own[first].overlay.clone()
        try:
            for written in own[first + 1 :]:
                merged.add(written.overlay)
        except BaseException:
            merged.close(durable=False)
            raise
        return merged

    def forget_oldest(self) -> None:
        """The next one is the oldest then. When it fails, all are to be forgotten."""
        oldest, following = self._moments[:2]
        for number, written in following.items():
            if not written.is_all:
                oldest[number].overlay.add(written.overlay)
                oldest[number], following[number] = written, oldest[number]
        _close(self._moments.pop(0))

    @property
    def size(self) -> int:
        """Bytes that were written since the oldest."""
        return sum(each.size for moment in self._moments[1:] for each in moment.values())

    def close(self) -> None:
        """Forget all. Safe to call twice."""
        self._whole = True
        while self._moments:
            _close(self._moments.pop())


def _close(moment: dict[int, _Written]) -> None:
    while moment:
        moment.popitem()[1].overlay.close(durable=False)


def with_own_overlays(config: MachineConfig) -> MachineConfig:
    """For a copy: a kept overlay is the machine's own, so the copy has one that is dropped."""
    disks = [disk._replace(overlay=DROPPED) if disk.overlay else disk for disk in config.disks]
    return config._replace(disks=tuple(disks))
