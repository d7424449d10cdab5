"""The patient: this host's KVM, the guest that most questions share, and what an answer is.

Reached from the modules with the questions (`doctor.questions`, `doctor.debugging`) and from
`doctor.checks`, the table of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

from pykvm.cpuid import FEATURES
from pykvm.doctor.guest import Answer, Code, ProbeGuest
from pykvm.kvm import Kvm


class Result(NamedTuple):
    """The answer to a question: yes, no, or None where it does not arise."""

    ok: bool | None
    detail: str = ""


class Host:
    """This host's KVM, and the guest that most questions share. A context manager."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self._guest: ProbeGuest | None = None
        self._leaves: dict[tuple[int, int], dict[str, int]] = {}

    @property
    def guest(self) -> ProbeGuest:
        """For probes that leave nothing behind in the VM's interrupt controllers."""
        if self._guest is None:
            self._guest = ProbeGuest(self.kvm)
        return self._guest

    def visible(self, feature: str) -> bool:
        """Whether the guest's kernel sees this CPU feature: what CPUID says in ring 0."""
        place = FEATURES[feature]
        key = place.function, place.index
        if key not in self._leaves:
            self._leaves[key] = cpuid(self.guest, "cpuid_ring0", *key)
        return bool(self._leaves[key][place.register] >> place.bit & 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._guest is not None:
            self._guest.close()


def cpuid(guest: ProbeGuest, probe: str, function: int, index: int) -> dict[str, int]:
    """What CPUID tells the guest, by register. All zero when it tells nothing."""
    answer = guest.call(probe, rdi=function, rsi=index)
    if answer.value != Code.YES:
        return dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0)
    regs = answer.regs
    return {"eax": regs.r8, "ebx": regs.r9, "ecx": regs.r10, "edx": regs.r11}


Question = Callable[[Host], Result]


def expect(answer: Answer, wanted: int = Code.YES, detail: str = "") -> Result:
    """Yes, if the probe said what it should."""
    return Result(True, detail) if answer.value == wanted else Result(False, answer.text)
