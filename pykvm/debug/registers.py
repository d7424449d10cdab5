"""A vCPU's registers under their names: where KVM keeps each, read and written as numbers.

Reached from `description`, which has them in gdb's order, from `view` (``vm.vcpus[0].regs``) and
from `monitor`. The vCPU stands still meanwhile. Source of the XSAVE area: Intel SDM vol. 1 §13.4
"XSAVE Area"; KVM hands it out in the standard format (api.rst, KVM_GET_XSAVE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pykvm._core import ffi
from pykvm.lean import Record
from pykvm.vcpu import CONTROL_REGISTERS, GENERAL_REGISTERS, SEGMENT_REGISTERS

if TYPE_CHECKING:
    from pykvm.vcpu import Vcpu

XSTATE_BV: Final = 512  # in the XSAVE area: which of its components are not in their initial state
YMM_HIGH: Final = 576  # bits 255:128 of YMM0 to YMM15; where every processor with AVX has them
ST: Final = 32  # x87 registers, 16 bytes apart
XMM: Final = 160

# What each part of the area belongs to: bits of XSTATE_BV.
X87, SSE, AVX = 1 << 0, 1 << 1, 1 << 2


class Place(Record):
    """Where a register is: a field of a structure of KVM's, bytes of the XSAVE area, or an MSR."""

    source: str  # regs, sregs, debugregs, xsave or msr
    field: str = ""  # "rax", "cs.base"
    at: int = 0  # xsave: the offset; msr: the number; debugregs: which one
    size: int = 8  # in bytes
    part: int = 0  # xsave: the bit of XSTATE_BV


def _places() -> dict[str, Place]:
    places = {name: Place("regs", name) for name in GENERAL_REGISTERS}
    for name in SEGMENT_REGISTERS:
        places[name] = Place("sregs", f"{name}.selector", size=2)
        places[f"{name}_base"] = Place("sregs", f"{name}.base")
        places[f"{name}_limit"] = Place("sregs", f"{name}.limit", size=4)
    for name in ("gdt", "idt"):
        places[f"{name}_base"] = Place("sregs", f"{name}.base")
        places[f"{name}_limit"] = Place("sregs", f"{name}.limit", size=2)
    places.update((name, Place("sregs", name)) for name in CONTROL_REGISTERS)
    places.update((f"dr{n}", Place("debugregs", f"db.{n}")) for n in range(4))
    places.update((name, Place("debugregs", name)) for name in ("dr6", "dr7"))
    # The legacy region (SDM vol. 1 §13.4.1). FTW is abridged there: one bit a register, 1 = used.
    for name, at, size in (
        ("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("fop", 6, 2),
        ("fip", 8, 4), ("fcs", 12, 2), ("fdp", 16, 4), ("fds", 20, 2),
    ):  # fmt: skip
        places[name] = Place("xsave", at=at, size=size, part=X87)
    places["mxcsr"] = Place("xsave", at=24, size=4, part=SSE)
    places |= {f"st{n}": Place("xsave", at=ST + 16 * n, size=10, part=X87) for n in range(8)}
    for n in range(16):
        places[f"xmm{n}"] = Place("xsave", at=XMM + 16 * n, size=16, part=SSE)
        places[f"ymm{n}h"] = Place("xsave", at=YMM_HIGH + 16 * n, size=16, part=AVX)
    places |= {name: Place("msr", at=number) for name, number in NAMED_MSRS.items()}
    return places


# MSRs that are read like registers (AMD APM vol. 2 appendix A "MSR Cross-Reference").
NAMED_MSRS: Final = {
    "star": 0xC000_0081,
    "lstar": 0xC000_0082,
    "cstar": 0xC000_0083,
    "sfmask": 0xC000_0084,
    "k_gs_base": 0xC000_0102,
    "tsc_aux": 0xC000_0103,
}
PLACES: Final = _places()


class RegisterFile:
    """The registers of a vCPU that stands still. What was read is kept: make a new one, or `drop`
    the old values, after the vCPU has run. What is written goes to the vCPU at once.

    Raises `KeyError` for a name that is none, and `KvmError` for a value that KVM refuses.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self._kept: dict[str, Any] = {}

    def drop(self) -> None:
        """Forget what was read."""
        self._kept.clear()

    def structure(self, source: str) -> Any:
        """The structure that KVM_GET_x gives for `source`, read at most once."""
        if source not in self._kept:
            self._kept[source] = getattr(self.vcpu, f"get_{source}")()
        return self._kept[source]

    def get(self, name: str) -> int:
        """The value of register `name`."""
        place = PLACES[name]
        if place.source == "msr":
            return self.vcpu.get_msrs([place.at]).get(place.at, 0)
        value = self.structure(place.source)
        if place.source == "xsave":
            return int.from_bytes(_area(value)[place.at : place.at + place.size], "little")
        for step in place.field.split("."):
            value = value[int(step)] if step.isdigit() else getattr(value, step)
        return int(value)

    def set(self, name: str, value: int) -> None:
        """Set register `name`; bits that do not fit it are cut off."""
        place = PLACES[name]
        value &= (1 << 8 * place.size) - 1
        if place.source == "msr":
            if self.vcpu.set_msrs({place.at: value}):
                raise ValueError(f"KVM refuses {value:#x} for {name}")
            return
        structure = self.structure(place.source)
        if place.source == "xsave":
            area = _area(structure)
            area[place.at : place.at + place.size] = value.to_bytes(place.size, "little")
            area[XSTATE_BV] = bytes([area[XSTATE_BV][0] | place.part])
        else:
            *outer, last = place.field.split(".")
            holder = structure
            for step in outer:
                holder = getattr(holder, step)
            if last.isdigit():
                holder[int(last)] = value
            else:
                setattr(holder, last, value)
        try:
            getattr(self.vcpu, f"set_{place.source}")(structure)
        except OSError:
            self._kept.pop(place.source)  # it is not what the vCPU has
            raise

    @property
    def bits(self) -> int:
        """How the vCPU decodes instructions: as 16-, 32- or 64-bit code."""
        sregs = self.structure("sregs")
        if sregs.efer >> 10 & 1 and sregs.cs.l:
            return 64
        return 32 if sregs.cs.db else 16

    @property
    def pc(self) -> int:
        """The linear address of the next instruction: outside 64-bit code, CS has a base."""
        rip = self.get("rip")
        return rip if self.bits == 64 else self.get("cs_base") + rip & 0xFFFF_FFFF

    @pc.setter
    def pc(self, address: int) -> None:
        if self.bits != 64:
            address = address - self.get("cs_base") & 0xFFFF_FFFF
        self.set("rip", address)


def _area(xsave: Any) -> Any:
    return ffi.buffer(xsave)
