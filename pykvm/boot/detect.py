"""Which protocol an image wants, by its magic; and what to say of one that has none.

Reached from `boot.load()`. Read `boot/__init__`, which draws the decisions.
"""

from __future__ import annotations

from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Final

    from pykvm.boot import elf

LINUX_MAGIC: Final = b"HdrS"  # boot.rst, "header": in the setup header of a bzImage
LINUX_MAGIC_OFFSET: Final = 0x202
ELF_MAGIC: Final = b"\x7fELF"
MULTIBOOT_MAGIC: Final = 0x1BADB002.to_bytes(4, "little")
MULTIBOOT_SEARCH: Final = 8192  # §3.1.1: "contained completely within the first 8192 bytes"

GO_FLAT: Final = "if it is a raw binary, say how to enter it: --mode real|protected|long"

# (offset, magic, what it is and what to do instead)
FOREIGN: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0x38, b"ARM\x64", "an arm64 kernel image; this machine is x86"),
    (0x30, b"RISCV\0\0\0", "a RISC-V kernel image; this machine is x86"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image; unpack the kernel in it"),
    (0, b"QFI\xfb", "a qcow2 disk image, not a kernel; pass the kernel it would boot"),
    (0x8001, b"CD001", "an ISO 9660 image, not a kernel; pass the kernel inside it"),
    (0x438, b"\x53\xef", "an ext2/3/4 file system, not a kernel; pass the kernel inside it"),
    (0, b"hsqs", "a squashfs file system, not a kernel; pass the kernel inside it"),
    (0, b"070701", "a cpio archive: that is an initrd; pass it with --initrd and a kernel here"),
    (0, b"!<arch>\n", "an ar archive, such as a .deb; unpack it and pass the vmlinuz inside"),
    (0, b"PK\x03\x04", "a zip archive; unpack it and pass the kernel inside"),
    (0x101, b"ustar", "a tar archive; unpack it and pass the kernel inside"),
    (0, b"#!", "a script, not a kernel"),
    (
        0,
        b"MZ",
        "an EFI application without a Linux boot header; pykvm boots kernels without EFI: take "
        "the bzImage, the vmlinux or the multiboot image that goes with it",
    ),
    (0, b"\x55\xaa", "an option ROM, of a card of a PC, not a kernel"),
)

# Firmware ends where the address space does, and a PC starts 16 bytes before (Intel SDM vol. 3A
# §10.1.4 First Instruction Executed): with a jump, at times behind another instruction or two.
RESET_VECTOR: Final = slice(-16, -8)
JUMPS: Final = b"\xe9\xea\xeb"
FIRMWARE_MIN: Final = 64 << 10


def is_bzimage(image: memoryview) -> bool:
    """Whether `image` has a Linux setup header."""
    return bytes(image[LINUX_MAGIC_OFFSET : LINUX_MAGIC_OFFSET + 4]) == LINUX_MAGIC


def is_linux(image: memoryview) -> bool:
    """Whether `image` calls itself Linux: memtest86+ and iPXE have its setup header too."""
    if is_bzimage(image):
        # boot.rst: kernel_version points, less 0x200, to a text such as "6.1.0 (builder) #1 SMP"
        at = int.from_bytes(image[0x20E:0x210], "little") + 0x200
        major, _, rest = bytes(image[at : at + 256]).partition(b".")
        return major.isdigit() and rest[:1].isdigit() and b" #" in rest
    is_elf64 = bytes(image[:5]) == b"\x7fELF\x02"
    mapping: Any = image.obj
    return is_elf64 and mapping.find(b"Linux version ") >= 0


def is_linux32(image: memoryview) -> bool:
    """Whether `image`, a Linux, runs 32-bit programs only. Not known before boot protocol 2.12."""
    if not is_bzimage(image):
        return False
    from pykvm.boot.setupheader import Field, SetupHeader, XLoadFlags

    header = SetupHeader.parse(image)
    return header.version >= 0x20C and not header[Field.xloadflags] & XLoadFlags.KERNEL_64


def is_elf(image: memoryview) -> bool:
    """Whether `image` is an ELF file, or the beginning of one."""
    return bytes(image[:4]) == ELF_MAGIC


def protocol(image: memoryview) -> str:
    """Return the protocol `image` is made for. Raises `BootError` naming what it is instead.

    For a bzImage this is "bzimage": the loader of that name looks into it.
    """
    if is_bzimage(image):
        return "bzimage"
    if MULTIBOOT_MAGIC in bytes(image[:MULTIBOOT_SEARCH]):
        from pykvm.boot import multiboot

        if multiboot.find_header(image):
            return "multiboot"
    if is_elf(image):
        from pykvm.boot import elf

        return _elf_protocol(elf.parse(image))
    raise BootError(f"KERNEL: {_description(image)}")


def flat_or_refuse(image: memoryview) -> str:
    """Return "flat", unless `image` is plainly something else: then the option is the mistake."""
    for what, found in (
        ("a Linux bzImage", is_bzimage(image)),
        ("an ELF file", is_elf(image)),
    ):
        if found:
            raise BootError(
                f"--mode, --load and --entry are for flat binaries, KERNEL is {what}; drop them, "
                "or add --protocol flat"
            )
    return "flat"


def uncompressed(image: memoryview, limit: int) -> memoryview:
    """Return what `image` holds when it is a compressed kernel, else `image` itself.

    Raises `BootError`, also when that is more than `limit` bytes: the guest's memory.
    """
    if is_elf(image) or is_bzimage(image):
        return image
    from pykvm.boot import payload

    if payload.format_of(image) is None:
        return image
    return memoryview(payload.decompress(image, limit))


def _elf_protocol(kernel: elf.Elf) -> str:
    """multiboot was ruled out: a PVH note, or 64-bit Linux."""
    from pykvm.boot import pvh

    has_pvh = pvh.entry_of(kernel) is not None
    if kernel.bits == 64:
        # A Linux kernel has both entries, and its 64-bit one needs less of it. Other kernels with
        # the note have nothing that a 64-bit Linux entry could jump to.
        return "pvh" if has_pvh and not pvh.is_linux(kernel) else "linux64"
    if has_pvh:
        return "pvh"
    from pykvm.boot import multiboot

    if multiboot.is_multiboot2(kernel.image):
        raise BootError("KERNEL: multiboot 2 only; pykvm boots multiboot 1 (magic 0x1badb002)")
    raise BootError("KERNEL: a 32-bit ELF without a multiboot header or a PVH note: no known entry")


def _description(image: memoryview) -> str:
    """What an image without a known magic seems to be, and the remedy."""
    from pykvm.boot import multiboot

    for offset, magic, what in FOREIGN:
        if bytes(image[offset : offset + len(magic)]) == magic:
            return f"this is {what}"
    if multiboot.is_multiboot2(image):
        return "multiboot 2 only; pykvm boots multiboot 1 (magic 0x1badb002)"
    if bytes(image[510:512]) == b"\x55\xaa":
        if len(image) == 512:
            return "a boot sector; enter it as a PC would: --mode real"
        if len(image) % 512 == 0:
            return (
                "this looks like a disk image, not a kernel; pass the kernel it would boot, and "
                "the image by --root FILE,partition=1, say"
            )
    if _is_firmware(image):
        return (
            f"this looks like a PC's firmware (BIOS, UEFI); pykvm boots kernels without; {GO_FLAT}"
        )
    if len(image) < LINUX_MAGIC_OFFSET + len(LINUX_MAGIC):
        return f"{len(image)} bytes without a known magic; {GO_FLAT}"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in image[:512]):
        return "a text file, not a kernel"
    return f"no known magic: not a bzImage, an ELF file or a multiboot image; {GO_FLAT}"


def _is_firmware(image: memoryview) -> bool:
    whole_pages = len(image) >= FIRMWARE_MIN and len(image) % 4096 == 0
    return whole_pages and any(byte in JUMPS for byte in image[RESET_VECTOR])
