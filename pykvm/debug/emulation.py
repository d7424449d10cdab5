"""Single steps on a KVM made of software, whose emulator leaves two things undone.

Reached from `control`, on the thread that owns the vCPU. Read `host` for the kinds of hosts.

- A HLT under a single step: the emulator notes that the vCPU is to halt, but leaves for the
  debugger first, and halts it at some later instruction: with interrupts off, for ever. So the HLT
  is made here: the next instruction, and KVM_MP_STATE_HALTED.
- What pushes RFLAGS (an interrupt, PUSHF) pushes the TF that KVM steps with. When the guest takes
  it back it gets a #DB; a processor's KVM lets us have that one instead. So TF is taken out here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pykvm._core import ffi, lib
from pykvm.debug.pagewalk import Paging, walk

if TYPE_CHECKING:
    from pykvm.debug.registers import RegisterFile
    from pykvm.memory import GuestMemory

HLT: Final = b"\xf4"
PUSHF: Final = b"\x9c"
TF: Final = 1 << 8
SHADOW: Final = 11  # struct kvm_vcpu_events: interrupt.shadow, behind an exception of 8 bytes
WORDS: Final = 16  # of the stack: a handler's first instruction may have pushed something, too
STACK: Final = struct.Struct(f"<{WORDS}Q")


class Emulation:
    """What is made up for, in the machine with this memory."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._before: dict[int, int] = {}  # where each vCPU was before its step

    def begin(self, file: RegisterFile) -> None:
        """A step begins."""
        self._before[file.vcpu.id] = file.pc

    def halt(self, file: RegisterFile) -> bool:
        """Carry out the next instruction, if it is a HLT in ring 0."""
        if file.get("cs") & 3 or self._read(file, file.pc, 1) != HLT:
            return False
        file.set("rip", file.get("rip") + 1)
        self.begin(file)
        events = file.vcpu.get_events()
        ffi.buffer(events)[SHADOW] = b"\0"  # of a STI: it ends with this instruction
        file.vcpu.set_events(events)
        file.vcpu.set_mp_state(lib.KVM_MP_STATE_HALTED)
        return True

    def clean(self, file: RegisterFile) -> None:
        """Take TF out of what the last step pushed. In 64-bit code only."""
        before, stack = self._before[file.vcpu.id], file.get("rsp")
        self.begin(file)
        data = self._read(file, stack, STACK.size) if file.bits == 64 else b""
        if len(data) < STACK.size:
            return
        words = STACK.unpack(data)
        if words[0] & TF and self._read(file, before, 1) == PUSHF:
            self._clear(file, stack, words[0])
        for at in range(WORDS - 2):  # a frame: RIP, CS, RFLAGS
            if words[at] == before and words[at + 1] >> 16 == 0 and words[at + 2] & TF:
                self._clear(file, stack + 8 * (at + 2), words[at + 2])

    def _clear(self, file: RegisterFile, gva: int, flags: int) -> None:
        gpa = self._find(file, gva)
        if gpa is not None:
            self._memory.write(gpa, (flags & ~TF).to_bytes(8, "little"))

    def _read(self, file: RegisterFile, gva: int, size: int) -> bytes:
        """As much of it as is memory, and in one page."""
        gpa, size = self._find(file, gva), min(size, 4096 - gva % 4096)
        if gpa is None or not self._memory.contains(gpa, size):
            return b""
        return self._memory.read(gpa, size)

    def _find(self, file: RegisterFile, gva: int) -> int | None:
        return walk(self._memory, Paging.of(file.structure("sregs")), gva).gpa
