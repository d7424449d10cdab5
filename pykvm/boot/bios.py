"""The BIOS that a guest of a PC's boot loaders finds: interrupt vectors, data area, a ROM of stubs.

Reached from `machine` after a loader chose real mode or multiboot: `install()` writes the bytes and
sends the boot vCPU through the ROM. The services behind the stubs are Python: read
`devices/bios.py`. Source: IBM PC AT Technical Reference, "ROM BIOS"; Ralf Brown's Interrupt List,
MEMORY.LST (data area).

::

    int 16h ─> IVT ─> F000:stub   push number; push registers; out PORT_BIOS_CALL ─> Python
    IRQ 0   ─> IVT ─> F000:tick   count, end of interrupt; no exit
"""

from __future__ import annotations

import struct
import time

from pykvm import layout
from pykvm.boot.entry import CpuMode, Entry
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

SERVICES: Final = (0x00, 0x06, *range(0x10, 0x1B))  # interrupts that Python answers
ROM_SEGMENT: Final = layout.BIOS_ROM >> 4
RESET_VECTOR: Final = 0xFFF0  # offset in the ROM
ROM_DATE: Final = b"01/01/26"
MODEL_AT: Final = 0xFC

IVT_SIZE: Final = 0x400
BDA: Final = 0x400  # BIOS data area
BDA_SIZE: Final = 0x100
BDA_EQUIPMENT: Final = 0x10  # offsets in the BIOS data area
BDA_BASE_KIB: Final = 0x13
BDA_KEY_HEAD: Final = 0x1A  # offsets from BDA of the next key to take, and of the next free place
BDA_KEY_TAIL: Final = 0x1C
BDA_CURSOR: Final = 0x50  # column, row
BDA_TICKS: Final = 0x6C
BDA_KEYS: Final = 0x80  # start and end of the key buffer

KEYS: Final = 0x1E  # offset of the key buffer in the BIOS data area
KEYS_END: Final = 0x3E
COLUMNS: Final = 80
ROWS: Final = 25
TEXT_MODE: Final = 3  # 80 x 25, 16 colours
TICKS_PER_S: Final = 1_193_182 / 65536  # the PIT's rate through its largest divisor

# One FPU, 80 x 25 colour display, one serial port: int 11h's answer.
EQUIPMENT: Final = 1 << 1 | 2 << 4 | 1 << 9

# What a BIOS writes to the interrupt controllers and the timer before it boots anything.
BOARD_SETUP: Final = (
    (0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01),  # PIC: IRQ 0 to 7 are int 08h to 0Fh
    (0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01),  # IRQ 8 to 15 are int 70h to 77h
    (0x21, 0xFA), (0xA1, 0xFF),  # all masked but the timer and the cascade
    (0x43, 0x36), (0x40, 0x00), (0x40, 0x00),  # PIT channel 0: square wave, divisor 65536
)  # fmt: skip

IRET: Final = bytes.fromhex("cf")
END_OF_INTERRUPT: Final = bytes.fromhex("50 b020 e620 58 cf")  # push ax; out 20h, 20h; pop ax
END_OF_INTERRUPT_2: Final = bytes.fromhex("50 b020 e6a0 e620 58 cf")  # both controllers
TICK: Final = bytes.fromhex(
    "50 1e"  #         push ax; push ds
    "31c0 8ed8"  #     xor ax, ax; mov ds, ax
    "66ff066c04"  #    inc dword [46ch]     midnight passes unnoticed
    "cd1c"  #          int 1ch              the user's tick
    "b020 e620"  #     mov al, 20h; out 20h, al
    "1f 58 cf"  #      pop ds; pop ax; iret
)
REBOOT: Final = bytes.fromhex("b0fe e664 f4 ebfd")  # mov al, feh; out 64h, al; hlt; jmp back to hlt

# Every service comes here with its number pushed (see `devices.bios.FRAME` for the whole frame).
# Python serves the call by changing the frame; or asks to be asked again after an interrupt.
CALL: Final = (
    bytes.fromhex(
        "6660 1e 06"  #    pushad; push ds; push es
        "8cd0 66c1e010"  # again: mov ax, ss; shl eax, 16
        "89e0 ba"  #       mov ax, sp; mov dx, PORT_BIOS_CALL
    )
    + struct.pack("<H", layout.PORT_BIOS_CALL)
    + bytes.fromhex(
        "66ef"  #          out dx, eax          SS:SP, where the frame is
        "89e5"  #          mov bp, sp
        "807e2500"  #      cmp byte [bp+37], 0  the number's high byte: wait?
        "7408"  #          je done
        "c6462500"  #      mov byte [bp+37], 0
        "fb f4"  #         sti; hlt
        "ebe3"  #          jmp again
        "07 1f 6661"  #    done: pop es; pop ds; popad
        "83c402 cf"  #     add sp, 2; iret
    )
)


def install(memory: GuestMemory, entry: Entry) -> Entry:
    """Write vectors, data area and ROM; return `entry` led through the ROM's set-up of the board.

    A multiboot guest, entered in protected mode, keeps its entry: it may go back to real mode and
    call the BIOS later, as Xen does. An image that lies where these belong brings its own: nothing
    is written, and `entry` returned.
    """
    rom, vectors, start = build_rom(entry)
    low = struct.pack("<256I", *vectors) + build_data_area(memory.low_end)
    top = struct.pack("<BHH", 0xEA, start["reboot"], ROM_SEGMENT)  # jmp far
    top += ROM_DATE + bytes([0, MODEL_AT, 0])
    places = {0: low, layout.BIOS_ROM: rom, layout.BIOS_ROM + RESET_VECTOR: top}
    if not all(memory.contains(gpa, len(data)) for gpa, data in places.items()):
        return entry
    if any(any(memory.read(gpa, len(data))) for gpa, data in places.items()):
        return entry
    for gpa, data in places.items():
        memory.write(gpa, data)
        memory.placed.append((gpa, gpa + len(data), "the BIOS"))
    if memory.contains(layout.EBDA):
        memory.write(layout.EBDA, b"\x01")  # its size in KiB
    if entry.mode is not CpuMode.REAL:
        return entry
    segments = {**entry.segments, "cs": ROM_SEGMENT}
    return entry._replace(rip=start["boot"], segments=segments)


def build_rom(entry: Entry) -> tuple[bytes, list[int], dict[str, int]]:
    """Return the ROM's bytes, 256 vectors (segment << 16 | offset), and the entries by name."""
    rom = bytearray()

    def put(code: bytes) -> int:
        at = len(rom)
        rom.extend(code)
        return at

    vectors = [put(IRET)] * 256
    vectors[0x08:0x10] = [put(TICK), *[put(END_OF_INTERRUPT)] * 7]
    vectors[0x70:0x78] = [put(END_OF_INTERRUPT_2)] * 8
    call = put(CALL)
    for number in SERVICES:
        at = len(rom)
        vectors[number] = put(struct.pack("<BBBh", 0x6A, number, 0xE9, call - (at + 5)))
    start = {"reboot": put(REBOOT)}
    if entry.mode is CpuMode.REAL:
        start["boot"] = put(_boot(entry))
    return bytes(rom), [ROM_SEGMENT << 16 | offset for offset in vectors], start


def _boot(entry: Entry) -> bytes:
    """Set up the board, then jump to the entry with the registers it asks for.

    A boot sector may count on interrupts; for a bzImage, Linux Documentation/arch/x86/boot.rst,
    "Running the Kernel", wants them off.
    """
    code = b"".join(bytes([0xB0, value, 0xE6, port]) for port, value in BOARD_SETUP)
    code += struct.pack("<BBI", 0x66, 0xB8, entry.regs.get("rax", 0) & 0xFFFF_FFFF)  # mov eax
    code += b"\xfb" if entry.protocol == "flat" else b""  # sti
    return code + struct.pack("<BHH", 0xEA, entry.rip, entry.segments.get("cs", 0))  # jmp far


def build_data_area(low_end: int) -> bytes:
    """The BIOS data area of a machine with one serial port and no drives, at this hour's tick."""
    area = bytearray(BDA_SIZE)
    base_kib = min(low_end, layout.EBDA) // 1024
    ticks = int(time.time() % 86400 * TICKS_PER_S)
    for offset, form, *values in (
        (0x00, "<H", layout.PORT_COM1),
        (0x0E, "<H", layout.EBDA >> 4),
        (BDA_EQUIPMENT, "<H", EQUIPMENT),
        (BDA_BASE_KIB, "<H", base_kib),
        (BDA_KEY_HEAD, "<HH", KEYS, KEYS),
        (0x49, "<BHH", TEXT_MODE, COLUMNS, COLUMNS * ROWS * 2),  # mode, columns, page size
        (0x60, "<HBH", 0x0607, 0, 0x3D4),  # cursor shape, page, CRT controller's port
        (BDA_TICKS, "<I", ticks),
        (0x78, "<4B4B", 20, 20, 20, 20, 1, 1, 1, 1),  # time-outs: printers, serial ports
        (BDA_KEYS, "<HH", KEYS, KEYS_END),
        (0x84, "<BH", ROWS - 1, 16),  # last row, a character's height
        (0x96, "<B", 0x10),  # a keyboard with 101 keys
    ):
        struct.pack_into(form, area, offset, *values)
    return bytes(area)
