"""The debugger's questions: do breakpoints stop the guest, are single steps reported?

Reached from `doctor.checks`; answers by KVM_SET_GUEST_DEBUG alone (Linux
Documentation/virt/kvm/api.rst §4.87). Read guests/probe/debug.inc beside it.
"""

from __future__ import annotations

from typing import Final

from pykvm._core import ffi, lib
from pykvm.doctor.guest import Code, ProbeGuest
from pykvm.doctor.host import Host, Question, Result
from pykvm.errors import check

# Intel SDM vol. 3B §17.2.4 Debug Control Register (DR7): G0, and for a data breakpoint also
# R/W0 = writes, LEN0 = 4 bytes.
_DR7_EXECUTE: Final = 1 << 1
_DR7_WRITE: Final = 1 << 1 | 1 << 16 | 3 << 18
STEPS_MAX: Final = 100  # the probes need a third of that


def _set_debug(guest: ProbeGuest, control: int, dr0: int = 0, dr7: int = 0) -> None:
    debug = ffi.new("struct kvm_guest_debug *", {"control": lib.KVM_GUESTDBG_ENABLE | control})
    debug.arch.debugreg[0], debug.arch.debugreg[7] = dr0, dr7
    check(lib.pk_ioctl(guest.vcpu.fd, lib.KVM_SET_GUEST_DEBUG, debug), "KVM_SET_GUEST_DEBUG")


def _stops_at(
    host: Host, probe: str, expected: str, control: int, dr0: str = "", dr7: int = 0
) -> Result:
    """Run `probe` under the debugger: yes if its first stop is at `expected`."""
    stops: list[int] = []

    def stop(pc: int) -> bool:
        stops.append(pc)
        return False

    with ProbeGuest(host.kvm) as guest:
        guest.prepare(probe)
        _set_debug(guest, control, guest.address(dr0) if dr0 else 0, dr7)
        answer = guest.run(on_debug=stop)
        wanted = guest.address(expected)
    if not stops:
        return Result(False, "never stops" if answer.value == Code.YES else answer.text)
    return Result(True) if stops == [wanted] else Result(False, f"stops at {stops[0] - wanted:+#x}")


def breakpoint(probe: str, at: str) -> Question:
    """A hardware breakpoint stops before the instruction."""
    return lambda host: _stops_at(host, probe, at, lib.KVM_GUESTDBG_USE_HW_BP, at, _DR7_EXECUTE)


def watchpoint(host: Host) -> Result:
    """A data breakpoint stops after the instruction that writes."""
    control = lib.KVM_GUESTDBG_USE_HW_BP
    return _stops_at(host, "steps", "behind_write", control, "watched", _DR7_WRITE)


def at_int3(host: Host) -> Result:
    """An INT3 that the debugger wrote goes to the debugger, not to the guest's IDT."""
    return _stops_at(host, "software_breakpoint", "int3_of_debugger", lib.KVM_GUESTDBG_USE_SW_BP)


def single_step(probe: str, start: str) -> Question:
    """A stop after each of the three one-byte instructions at `start`."""

    def ask(host: Host) -> Result:
        stops: list[int] = []
        with ProbeGuest(host.kvm) as guest:
            guest.prepare(probe)
            last = guest.address(start) + 3

            def stop(pc: int) -> bool:
                stops.append(pc)
                # Once more for each step: an IRET loads flags, and with them the trap flag.
                _set_debug(guest, lib.KVM_GUESTDBG_SINGLESTEP)
                return pc != last and len(stops) < STEPS_MAX

            _set_debug(guest, lib.KVM_GUESTDBG_SINGLESTEP)
            answer = guest.run(on_debug=stop)
        if stops[-3:] == [last - 2, last - 1, last]:
            return Result(True)
        if stops:
            return Result(False, f"stops after {len(stops)} steps")
        return Result(False, "no step is reported" if answer.value == Code.YES else answer.text)

    return ask
