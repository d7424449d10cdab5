"""What gdb is told about the registers, and how they travel in its packets.

Reached from `target`. Two descriptions: ``i386:x86-64`` and, for guests without long mode, ``i386``
or ``i8086``. Source: "Debugging with GDB", appendix G "Target Descriptions", section G.5.7 "i386
Features"; the feature ``org.pykvm.system`` is our own. gdb numbers registers in the order of the
description, and packets ``g`` and ``G`` have them in that order too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pykvm.lean import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pykvm.debug.registers import RegisterFile

AMD64: Final = "i386:x86-64"
I386: Final = "i386"
I8086: Final = "i8086"


class Register(Record):
    """A register as gdb sees it."""

    name: str  # gdb's
    source: str  # ours: a name of `registers.PLACES`, or "pc" or "ftag"
    bits: int
    type: str = "int"
    group: str = ""


SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
X87_CONTROL: Final = (
    ("fctrl", "fcw"), ("fstat", "fsw"), ("ftag", "ftag"), ("fiseg", "fcs"),
    ("fioff", "fip"), ("foseg", "fds"), ("fooff", "fdp"), ("fop", "fop"),
)  # fmt: skip

# Bits by register (Intel SDM vol. 3A §2.3, §2.5, §2.2.1; vol. 1 §10.2.3): name and bit.
FLAGS: Final = {
    "i386_eflags": "CF:0 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 NT:14 RF:16 VM:17 AC:18 VIF:19 "
    "VIP:20 ID:21",
    "i386_mxcsr": "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15",
    "cr0": "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31",
    "cr4": "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11 "
    "LA57:12 VMXE:13 FSGSBASE:16 PCIDE:17 OSXSAVE:18 SMEP:20 SMAP:21 PKE:22 CET:23",
    "efer": "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 FFXSR:14 TCE:15",
}


class Description:
    """The registers of one architecture, in gdb's order."""

    def __init__(self, architecture: str, avx: bool) -> None:
        self.architecture = architecture
        wide = architecture == AMD64
        self._features = [
            ("org.gnu.gdb.i386.core", [*_general(wide), *_x87()]),
            ("org.gnu.gdb.i386.sse", list(_sse(16 if wide else 8))),
        ]
        if avx:
            registers = [
                Register(f"ymm{n}h", f"ymm{n}h", 128, "uint128") for n in range(16 if wide else 8)
            ]
            self._features.append(("org.gnu.gdb.i386.avx", registers))
        bases = list(SEGMENTS)
        if wide:
            registers = [Register(f"{n}_base", f"{n}_base", 64, "int64") for n in ("fs", "gs")]
            self._features.append(("org.gnu.gdb.i386.segments", registers))
            bases = bases[:-2]
        self._features.append(("org.pykvm.system", list(_system(bases, wide))))
        self.registers = [register for _, part in self._features for register in part]
        self._numbers = {register.name: n for n, register in enumerate(self.registers)}

    def read(self, file: RegisterFile, number: int) -> bytes:
        """The bytes of register `number`. Raises `IndexError`."""
        register = self.registers[number]
        value = tag_word(file) if register.source == "ftag" else _value(file, register.source)
        size = register.bits // 8
        return (value & (1 << register.bits) - 1).to_bytes(size, "little")

    def write(self, file: RegisterFile, number: int, data: bytes) -> None:
        """Set register `number`. Raises `IndexError`, and `ValueError` for a wrong size."""
        register = self.registers[number]
        if len(data) != register.bits // 8:
            raise ValueError(f"{register.name} has {register.bits // 8} bytes")
        value = int.from_bytes(data, "little")
        if register.source == "pc":
            file.pc = value
        elif register.source == "ftag":
            file.set("ftw", sum((value >> 2 * n & 3 != 3) << n for n in range(8)))
        else:
            file.set(register.source, value)

    def read_all(self, file: RegisterFile) -> bytes:
        """What packet ``g`` answers."""
        return b"".join(self.read(file, number) for number in range(len(self.registers)))

    def write_all(self, file: RegisterFile, data: bytes) -> None:
        """What packet ``G`` asks for: only what differs is written, as KVM checks what it is given.

        Raises `ValueError` for a wrong size.
        """
        if len(data) != sum(register.bits // 8 for register in self.registers):
            raise ValueError("not the size of all registers")
        at = 0
        for number, register in enumerate(self.registers):
            piece = data[at : at + register.bits // 8]
            at += len(piece)
            if piece != self.read(file, number):
                self.write(file, number, piece)

    def number(self, name: str) -> int:
        """gdb's number for the register called `name`."""
        return self._numbers[name]

    def xml(self) -> bytes:
        """target.xml."""
        features = "".join(_feature(name, registers) for name, registers in self._features)
        return (
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
            f"<target><architecture>{self.architecture}</architecture>{features}</target>"
        ).encode()


def _value(file: RegisterFile, source: str) -> int:
    return file.pc if source == "pc" else file.get(source)


def _general(wide: bool) -> Iterator[Register]:
    if wide:
        order = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"]
        for name in [*order, *(f"r{n}" for n in range(8, 16))]:
            yield Register(name, name, 64, "data_ptr" if name in ("rbp", "rsp") else "int64")
        yield Register("rip", "pc", 64, "code_ptr")
    else:
        for name in ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"):
            kind = "data_ptr" if name in ("esp", "ebp") else "int32"
            yield Register(name, f"r{name[1:]}", 32, kind)
        yield Register("eip", "pc", 32, "code_ptr")
    yield Register("eflags", "rflags", 32, "i386_eflags")
    for name in SEGMENTS:
        yield Register(name, name, 32, "int32")


def _x87() -> Iterator[Register]:
    for n in range(8):
        yield Register(f"st{n}", f"st{n}", 80, "i387_ext")
    for name, source in X87_CONTROL:
        yield Register(name, source, 32, "int", "float")


def _sse(count: int) -> Iterator[Register]:
    for n in range(count):
        yield Register(f"xmm{n}", f"xmm{n}", 128, "vec128")
    yield Register("mxcsr", "mxcsr", 32, "i386_mxcsr", "vector")


def _system(bases: Iterable[str], wide: bool) -> Iterator[Register]:
    """What only ring 0 can change."""
    size, kind = (64, "int64") if wide else (32, "int32")
    for name in (*(f"{base}_base" for base in bases), "gdt_base", "idt_base", "tr_base"):
        yield Register(name, name, size, kind, "system")
    for name in ("gdt_limit", "idt_limit", "tr", "ldt"):
        yield Register(name, name, 32, "int32", "system")
    if wide:
        yield Register("k_gs_base", "k_gs_base", 64, "int64", "system")
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        yield Register(name, name, size, name if name in FLAGS else kind, "system")


def _feature(name: str, registers: list[Register]) -> str:
    rows = "".join(
        f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.type}"'
        + (f' group="{r.group}"/>' if r.group else "/>")
        for r in registers
    )
    types = "".join(_flags(r) for r in registers if r.type in FLAGS)
    if any(r.type == "vec128" for r in registers):
        types = VEC128 + types
    return f'<feature name="{name}">{types}{rows}</feature>'


def flags(kind: str, value: int) -> str:
    """The names of the bits set in a register of a `kind` in FLAGS."""
    return " ".join(name for name, bit in _bits(kind) if value >> int(bit) & 1)


def _bits(kind: str) -> list[list[str]]:
    return [field.split(":") for field in FLAGS[kind].split()]


def _flags(register: Register) -> str:
    fields = ""
    for name, bit in _bits(register.type):
        fields += f'<field name="{name}" start="{bit}" end="{bit}"/>'
    return f'<flags id="{register.type}" size="{register.bits // 8}">{fields}</flags>'


VEC128: Final = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>'
    '<field name="uint128" type="uint128"/></union>'
)


def tag_word(file: RegisterFile) -> int:
    """The x87 tag word, two bits a register, from its abridged form and the registers (Intel SDM
    vol. 1 §8.1.7 "x87 FPU Tag Word", table 10-3)."""
    used, top, word = file.get("ftw"), file.get("fsw") >> 11 & 7, 0
    for physical in range(8):
        tag = 3  # empty
        if used >> physical & 1:
            value = file.get(f"st{physical - top & 7}")
            exponent, fraction = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            if exponent == 0 and fraction == 0:
                tag = 1
            else:
                tag = 0 if exponent not in (0, 0x7FFF) and fraction >> 63 else 2
        word |= tag << 2 * physical
    return word
