"""struct setup_header: what a bzImage says of itself, and what its boot loader answers.

Reached from the Linux loaders. Source: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
Header", whose names the fields keep; offsets are those of the image, where the header starts at
0x1f1. Read `bootparams`, which copies the header into the zero page, beside it.
"""

from __future__ import annotations

from pykvm.boot.detect import LINUX_MAGIC, LINUX_MAGIC_OFFSET, is_bzimage
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING, IntFlag

if TYPE_CHECKING:
    from typing import Final

Place = tuple[int, int, int]

HEADER_START: Final = 0x1F1
HEADER_END_MAX: Final = 0x290  # in the zero page, edd_mbr_sig_buffer starts here
BOOT_FLAG: Final = 0xAA55
SECTOR: Final = 512

LOADER_UNDEFINED: Final = 0xFF  # type_of_loader: "Undefined", for loaders without an assigned id
CMDLINE_SIZE_OLD: Final = 255  # before protocol 2.06
INITRD_ADDR_MAX_OLD: Final = 0x37FF_FFFF  # before protocol 2.03


class LoadFlags(IntFlag):
    """loadflags: bits set by the kernel (r) or by the boot loader (w)."""

    LOADED_HIGH = 1 << 0  # r: the protected-mode code belongs at 1 MiB, not at 64 KiB
    CAN_USE_HEAP = 1 << 7  # w: heap_end_ptr is valid


class XLoadFlags(IntFlag):
    """xloadflags, since protocol 2.12."""

    KERNEL_64 = 1 << 0  # a 64-bit entry point at 0x200 of the protected-mode code


class Field:
    """Where a field is: (offset, bytes, protocol since)."""

    setup_sects = (0x1F1, 1, 0)
    syssize = (0x1F4, 4, 0)
    boot_flag = (0x1FE, 2, 0)
    version = (0x206, 2, 0x200)
    kernel_version = (0x20E, 2, 0x200)
    type_of_loader = (0x210, 1, 0x200)
    loadflags = (0x211, 1, 0x200)
    code32_start = (0x214, 4, 0x200)
    ramdisk_image = (0x218, 4, 0x200)
    ramdisk_size = (0x21C, 4, 0x200)
    heap_end_ptr = (0x224, 2, 0x201)
    cmd_line_ptr = (0x228, 4, 0x202)
    initrd_addr_max = (0x22C, 4, 0x203)
    kernel_alignment = (0x230, 4, 0x205)
    relocatable_kernel = (0x234, 1, 0x205)
    xloadflags = (0x236, 2, 0x20C)
    cmdline_size = (0x238, 4, 0x206)
    payload_offset = (0x248, 4, 0x208)
    payload_length = (0x24C, 4, 0x208)
    pref_address = (0x258, 8, 0x20A)
    init_size = (0x260, 4, 0x20A)


class SetupHeader:
    """A setup header: `raw` is the image from 0x1f1 to the header's end."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def parse(cls, image: memoryview) -> SetupHeader:
        """Read the header of a bzImage or zImage. Raises `BootError` when there is none."""
        if not is_bzimage(image):
            raise BootError(
                "KERNEL: no Linux setup header (HdrS): not a bzImage, or of before Linux 1.3.73"
            )
        # "the end of setup header can be calculated as 0x0202 + byte value at offset 0x0201"
        end = min(LINUX_MAGIC_OFFSET + image[0x201], HEADER_END_MAX)
        header = cls(bytes(image[HEADER_START:end]))
        shortest = Field.ramdisk_size[0] + 4 - HEADER_START  # of all protocols
        if len(header.raw) < shortest or header[Field.boot_flag] != BOOT_FLAG:
            raise BootError("KERNEL: the Linux setup header is damaged or truncated")
        return header

    @classmethod
    def for_vmlinux(cls) -> SetupHeader:
        """The header of a bare vmlinux, whose own was left behind with its bzImage."""
        header = bytearray(Field.init_size[0] + 4 - HEADER_START)
        at = LINUX_MAGIC_OFFSET - HEADER_START
        header[at : at + 4] = LINUX_MAGIC
        return cls(bytes(header)).replace(
            {
                Field.boot_flag: BOOT_FLAG,
                Field.version: 0x20F,
                Field.loadflags: LoadFlags.LOADED_HIGH,
                Field.initrd_addr_max: 0x7FFF_FFFF,
                Field.kernel_alignment: 0x20_0000,
                Field.cmdline_size: 2047,  # COMMAND_LINE_SIZE - 1
            }
        )

    def __getitem__(self, field: Place) -> int:
        """The field's value; 0 when the header's protocol or its end comes before the field."""
        offset, size, since = field
        if since > 0x200 and self[Field.version] < since:
            return 0
        at = offset - HEADER_START
        return int.from_bytes(self.raw[at : at + size], "little")

    def replace(self, values: dict[Place, int]) -> SetupHeader:
        """A copy with `values` in it; fields past the header's end are left out."""
        raw = bytearray(self.raw)
        for field, value in values.items():
            offset, size, _ = field
            at = offset - HEADER_START
            if at + size <= len(raw):
                raw[at : at + size] = value.to_bytes(size, "little")
        return SetupHeader(bytes(raw))

    def with_loader_fields(self, cmdline: int, ramdisk: int, ramdisk_size: int) -> bytes:
        """The raw header with what the boot loader must fill in."""
        return self.replace(
            {
                Field.type_of_loader: LOADER_UNDEFINED,
                Field.cmd_line_ptr: cmdline,
                Field.ramdisk_image: ramdisk,
                Field.ramdisk_size: ramdisk_size,
            }
        ).raw

    @property
    def version(self) -> int:
        """The boot protocol's version: 0x20f is 2.15."""
        return self[Field.version]

    @property
    def setup_size(self) -> int:
        """Bytes of boot sector and real-mode code. setup_sects of 0 means 4."""
        return ((self[Field.setup_sects] or 4) + 1) * SECTOR

    def protected_part(self, image: memoryview) -> memoryview:
        """The protected-mode code behind the setup sectors. Raises `BootError` when truncated.

        syssize counts it in paragraphs of 16 bytes, of which the last need not be whole, and is not
        to be trusted before protocol 2.04.
        """
        size = self[Field.syssize] * 16 if self.version >= 0x204 else 0
        start = self.setup_size
        part = image[start : start + size] if size else image[start:]
        if not part or len(part) + 15 < size:
            raise BootError(
                f"KERNEL: truncated: its header promises {start + size} bytes, the file has "
                f"{len(image)}; copy the file again"
            )
        return part

    @property
    def cmdline_size(self) -> int:
        """The most bytes of command line the kernel reads, NUL excluded."""
        return self[Field.cmdline_size] if self.version >= 0x206 else CMDLINE_SIZE_OLD

    @property
    def initrd_addr_max(self) -> int:
        """The highest address the initrd's last byte may have."""
        return self[Field.initrd_addr_max] if self.version >= 0x203 else INITRD_ADDR_MAX_OLD
