"""bzImage: a real-mode setup part, a decompressor, and a vmlinux compressed behind it.

Reached from `boot.load()` for every image with a Linux setup header. It chooses the entry::

    image[0:setup_size]   boot sector and real-mode code ──> linux16 (realmode.py)
    image[setup_size:]    protected-mode code: +0x000 ─────> linux32
                                               +0x200 ─────> bzimage64
                                               payload ────> linux64, pvh (the vmlinux itself)

Source: Linux Documentation/arch/x86/boot.rst, "32-bit BOOT PROTOCOL" and "64-bit BOOT PROTOCOL".
"""

from __future__ import annotations

from contextlib import ExitStack

from pykvm import layout
from pykvm.boot import elf, linux64, pvh
from pykvm.boot.bootparams import write_zero_page
from pykvm.boot.claims import Claims
from pykvm.boot.entry import CpuMode, Entry
from pykvm.boot.payload import UnsupportedError
from pykvm.boot.setupheader import Field, LoadFlags, SetupHeader, XLoadFlags
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.boot.entry import BootSpec
    from pykvm.boot.vmlinuxcache import Vmlinux
    from pykvm.memory import GuestMemory

VERSION_32: Final = 0x207  # "Added paravirtualised boot protocol", which enters in 32-bit mode
ENTRY_64: Final = 0x200  # "the start address of loaded 64-bit kernel plus 0x200"


def load(image: memoryview, memory: GuestMemory, spec: BootSpec, protocol: str) -> Entry:
    """Load a bzImage by `protocol`; "bzimage" chooses one. Raises `BootError`."""
    header = SetupHeader.parse(image)
    notes: tuple[str, ...] = ()
    kernel = None
    with ExitStack() as opened:
        try:
            if protocol in ("linux64", "pvh") or (protocol == "bzimage" and _may_be_64_bit(header)):
                kernel = _extract(image, header, memory, spec)
        except UnsupportedError as reason:
            if protocol != "bzimage":
                raise
            notes = (f"{reason}; the guest will do it itself, which takes longer",)
        if kernel is not None:
            opened.enter_context(kernel)
        if protocol == "bzimage":
            protocol = _choose(header, kernel)
        if protocol in ("linux64", "pvh"):
            if kernel is None:
                raise BootError(f"KERNEL: no vmlinux inside, which --protocol {protocol} needs")
            if protocol == "pvh":
                return pvh.load(kernel.image, memory, spec, kernel.file)
            return linux64.load(kernel.image, memory, spec, header, kernel.file)

    if protocol == "linux16":
        from pykvm.boot import realmode

        return realmode.load(image, memory, spec, header)
    return _load_protected(image, memory, spec, header, protocol, notes)


def _extract(
    image: memoryview, header: SetupHeader, memory: GuestMemory, spec: BootSpec
) -> Vmlinux | None:
    """The vmlinux inside, or None when there is none."""
    from pykvm.boot import vmlinux

    data = vmlinux.find_payload(image, header)
    return None if data is None else vmlinux.extract(data, memory.size, spec.stamp)


def _may_be_64_bit(header: SetupHeader) -> bool:
    """Whether the payload can be a 64-bit vmlinux; before protocol 2.12 the header does not say."""
    return header.version < 0x20C or bool(header[Field.xloadflags] & XLoadFlags.KERNEL_64)


def _choose(header: SetupHeader, kernel: Vmlinux | None) -> str:
    """The best protocol of an image.

    Programs that dress up as a kernel may have nothing but real-mode code to enter. No flag says
    so; their headers do: code32_start, "the address to jump to in protected mode", is 0 (iPXE), or
    the protocol is older than the one that made the 32-bit entry official (memdisk, GRUB's
    lnxboot). A real kernel of that age is entered in real mode too, as its own boot loaders did.
    """
    if kernel is not None and elf.parse(kernel.image).bits == 64:
        return "linux64"
    if header[Field.xloadflags] & XLoadFlags.KERNEL_64:
        return "bzimage64"
    if header.version >= VERSION_32 and header[Field.code32_start]:
        return "linux32"
    return "linux16"


def _load_protected(
    image: memoryview,
    memory: GuestMemory,
    spec: BootSpec,
    header: SetupHeader,
    protocol: str,
    notes: tuple[str, ...],
) -> Entry:
    """Load the protected-mode code where it likes to be and enter it in 32- or 64-bit mode."""
    long = protocol == "bzimage64"
    if long and not header[Field.xloadflags] & XLoadFlags.KERNEL_64:
        raise BootError("KERNEL: it has no 64-bit entry (XLF_KERNEL_64); try --protocol linux32")
    if not long and not header[Field.loadflags] & LoadFlags.LOADED_HIGH:
        raise BootError("KERNEL: a zImage, made to be loaded below 1 MiB; build a bzImage")
    part = header.protected_part(image)
    gpa = header[Field.pref_address] or header[Field.code32_start] or layout.HIGH_MEMORY
    mode = CpuMode.LONG if long else CpuMode.PROTECTED
    claims = Claims(memory, spec, mode)
    claims.claim(gpa, max(len(part), header[Field.init_size]), "the kernel")
    memory.write(gpa, part)
    header = header.replace({Field.code32_start: gpa & 0xFFFF_FFFF})
    regs = write_zero_page(memory, spec, claims, header)
    return Entry(protocol, mode, gpa + ENTRY_64 if long else gpa, regs, notes=notes)
