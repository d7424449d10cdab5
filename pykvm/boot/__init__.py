"""Boot anything: from a kernel image's bytes to guest memory and the first instruction.

Reached from `machine`: `load()` finds the protocol by the image's magic and hands over to the
loader of that name. Read `entry` (what goes in and comes out), then `detect`, then one loader::

    bzImage ──┬─ payload is a vmlinux ──> linux64   (decompressed on the host)
              ├─ it cannot be taken out ─> bzimage64 (the guest decompresses)
              ├─ no 64-bit entry ────────> linux32
              └─ no 32-bit entry ────────> linux16
    ELF ──────┬─ multiboot header ───────> multiboot
              ├─ PVH note, not Linux ────> pvh
              └─ 64 bits ────────────────> linux64
    raw ──────┬─ multiboot header ───────> multiboot
              └─ --mode/--load/--entry ──> flat
"""

from __future__ import annotations

from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from mmap import mmap
    from typing import Final

    from pykvm.boot.entry import BootSpec, Entry
    from pykvm.memory import GuestMemory

PROTOCOLS: Final[dict[str, str]] = {
    "linux64": "Linux, 64-bit entry into the vmlinux, decompressed on the host",
    "bzimage64": "Linux, 64-bit entry into the bzImage; the guest decompresses",
    "linux32": "Linux, 32-bit entry into the bzImage",
    "linux16": "Linux, real-mode entry into the bzImage's setup code",
    "pvh": "Xen PVH, 32-bit entry named by an ELF note",
    "multiboot": "multiboot 1, ELF or raw, with modules",
    "flat": "a flat binary; see --mode, --load and --entry",
}


def load(
    image: bytes | memoryview | mmap,
    memory: GuestMemory,
    spec: BootSpec,
    protocol: str | None = None,
) -> Entry:
    """Put a kernel, and what `spec` adds to it, into fresh (all zero) guest memory.

    `protocol` forces one of `PROTOCOLS`. Whatever the image's bytes are, the work is bounded by the
    image's and the guest's size, and the only error raised is `BootError`.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise BootError(f"--protocol: {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    view = memoryview(image)
    if not len(view):
        raise BootError("KERNEL: the file is empty")
    from pykvm.boot import detect

    if protocol is None and (spec.mode, spec.load, spec.entry) != (None, None, None):
        protocol = detect.flat_or_refuse(view)
    if protocol != "flat":
        view = detect.uncompressed(view, memory.size)
        protocol = detect.protocol(view) if protocol is None else protocol
        if spec.modules and protocol not in ("multiboot", "pvh"):
            raise BootError(f"--module: {protocol} has no modules; use --initrd")

    if protocol == "flat":
        from pykvm.boot import flat

        return flat.load(view, memory, spec)
    if protocol == "multiboot":
        from pykvm.boot import multiboot

        return multiboot.load(view, memory, spec)
    if detect.is_bzimage(view):
        from pykvm.boot import bzimage

        return bzimage.load(view, memory, spec, protocol)
    if protocol == "pvh":
        from pykvm.boot import pvh

        return pvh.load(view, memory, spec)
    if protocol == "linux64":
        from pykvm.boot import linux64

        return linux64.load(view, memory, spec)
    raise BootError(f"KERNEL: --protocol {protocol} needs a bzImage; this file is none")
