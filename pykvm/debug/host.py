"""What of debugging this host's KVM really does, found with the doctor's small guests.

Reached from `breakpoints` when the first one is set, so that an attached debugger costs nothing
else. Three kinds of hosts were met:

- KVM on a processor with VMX or SVM: everything works.
- a KVM made of software: in ring 0 hardware breakpoints work, and INT3 is refused by its emulator,
  which tells as well where the guest is (not in real mode: there the guest gets it); watchpoints
  never stop, and nothing stops ring 3.
- kvm_amd on QEMU's TCG (`pykvm lab`): INT3 is not intercepted and reaches the guest; debug
  registers do nothing while the guest runs. But KVM compares them itself when it emulates an
  instruction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.lean import Record

if TYPE_CHECKING:
    from pykvm.kvm import Kvm


class Abilities(Record):
    """What works."""

    int3: bool = True  # an INT3 that the debugger wrote stops the guest
    refused: bool = False  # it does not, but KVM refuses to go on there, which is as good
    execute: bool = True  # a debug register stops the guest before an instruction
    watch: bool = True  # a debug register stops the guest after a write


def examine(kvm: Kvm) -> Abilities:
    """Try it out: three machines made and closed."""
    from pykvm.doctor import debugging
    from pykvm.doctor.host import Host

    host = Host(kvm)
    int3 = debugging.at_int3(host)
    return Abilities(
        int3=bool(int3.ok),
        refused="not emulated" in int3.detail,
        execute=bool(debugging.breakpoint("steps", "breakpoint")(host).ok),
        watch=bool(debugging.watchpoint(host).ok),
    )
