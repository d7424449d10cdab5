"""ACPI Machine Language: just enough of an encoder to write a DSDT.

Reached from `acpi`, which composes these functions into a table. Read ACPI 6.5 §20.2 "AML Grammar
Definition" beside it: each function is one production, takes encoded operands, returns bytes.
"""

from __future__ import annotations

import struct

_END_TAG = b"\x79\0"  # ACPI 6.5 §6.4.2.9 "End Tag"; checksum 0 means "do not check"


def name_segment(text: str) -> bytes:
    """Encode a name of one to four characters (§20.2.2 Name Objects Encoding)."""
    if not 1 <= len(text) <= 4:
        raise ValueError(f"{text!r} is not a name segment")
    return text.ljust(4, "_").encode("ascii")


def package_length(size: int) -> bytes:
    """Encode a PkgLength: `size` body bytes and the length's own (§20.2.4 Package Length)."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"{size} bytes do not fit an AML package")


def integer(value: int) -> bytes:
    """Encode an integer in the shortest way (§20.2.3 Data Objects Encoding)."""
    if value in (0, 1):
        return bytes([value])  # ZeroOp, OneOp
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} has more than 64 bits")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """Encode a plug-and-play id such as ``PNP0501`` (§19.6.38 EISAID)."""
    code = 0
    for letter in text[:3]:
        code = code << 5 | ord(letter) - ord("@")
    return integer(int.from_bytes(struct.pack(">HH", code, int(text[3:], 16)), "little"))


def buffer(data: bytes) -> bytes:
    body = integer(len(data)) + data
    return b"\x11" + package_length(len(body)) + body


def package(*elements: bytes) -> bytes:
    body = bytes([len(elements)]) + b"".join(elements)
    return b"\x12" + package_length(len(body)) + body


def name(segment: str, value: bytes) -> bytes:
    return b"\x08" + name_segment(segment) + value


def scope(segment: str, *terms: bytes) -> bytes:
    body = name_segment(segment) + b"".join(terms)
    return b"\x10" + package_length(len(body)) + body


def device(segment: str, *terms: bytes) -> bytes:
    body = name_segment(segment) + b"".join(terms)
    return b"\x5b\x82" + package_length(len(body)) + body


def method(segment: str, *terms: bytes) -> bytes:
    """A method without arguments (§20.2.5.2 Named Objects Encoding, DefMethod)."""
    body = name_segment(segment) + b"\0" + b"".join(terms)
    return b"\x14" + package_length(len(body)) + body


def notify(parent: str, segment: str, value: int) -> bytes:
    """Tell the driver of \\parent.segment of `value` (§20.2.5.3 Statement Opcodes Encoding)."""
    path = b"\\\x2e" + name_segment(parent) + name_segment(segment)
    return b"\x86" + path + integer(value)


# ── resource descriptors: what `_CRS` holds ──────────────────────────────────────────────────


def resources(*descriptors: bytes) -> bytes:
    return buffer(b"".join(descriptors) + _END_TAG)


def io(port: int, size: int) -> bytes:
    """`size` ports from `port`, all 16 address bits decoded (§6.4.2.5 I/O Port Descriptor)."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, size)


def irq(line: int) -> bytes:
    """ISA interrupt `line`, edge, active high, not shared (§6.4.2.1 IRQ Descriptor)."""
    return struct.pack("<BH", 0x22, 1 << line)


def interrupt(gsi: int) -> bytes:
    """Any GSI, consumed, edge, active high, not shared (§6.4.3.6 Extended Interrupt Descriptor)."""
    return struct.pack("<BHBBI", 0x89, 6, 0b0011, 1, gsi)


def memory(gpa: int, size: int) -> bytes:
    """A fixed read-write range (§6.4.3.4 "32-Bit Fixed", §6.4.3.5.1 "QWord Address Space")."""
    if gpa + size <= 1 << 32:
        return struct.pack("<BHBII", 0x86, 9, 1, gpa, size)
    # Flags: consumer, positive decode, minimum and maximum fixed; then uncached read-write memory.
    header = struct.pack("<BHBBB", 0x8A, 43, 0, 0b1101, 1)
    return header + struct.pack("<QQQQQ", 0, gpa, gpa + size - 1, 0, size)


def bus_numbers(first: int, last: int) -> bytes:
    """The buses below a bridge (§6.4.3.5.3 Word Address Space Descriptor, type 2)."""
    # Flags: producer, positive decode, minimum and maximum fixed.
    header = struct.pack("<BHBBB", 0x88, 13, 2, 0b1100, 0)
    return header + struct.pack("<HHHHH", 0, first, last, 0, last - first + 1)


def window(gpa: int, size: int) -> bytes:
    """Memory that a bridge hands down (§6.4.3.5.2 DWord Address Space Descriptor, type 0)."""
    # Flags: producer, positive decode, minimum and maximum fixed; then uncached read-write memory.
    header = struct.pack("<BHBBB", 0x87, 23, 0, 0b1100, 1)
    return header + struct.pack("<IIIII", 0, gpa, gpa + size - 1, 0, size)
