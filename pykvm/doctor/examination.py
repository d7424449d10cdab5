"""The whole examination: all checks, costs and capabilities, and the verdict they come to.

Reached from `cli_doctor` and from users' code: ``examine().verdict``. Read `doctor.checks` for the
questions; what the keys of `Examination.as_json` mean is told by ``pykvm doctor --help``.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import Any

from pykvm import __version__
from pykvm.doctor import capabilities, cpu_model
from pykvm.doctor.checks import CHECKS, Check, complaint
from pykvm.doctor.host import Host, Result
from pykvm.errors import KvmError
from pykvm.kvm import API_VERSION, Kvm

MODES = ("real_mode", "protected_mode", "long_mode")


class Level(enum.Enum):
    """How far this host's KVM goes. The value is the JSON output's word for it."""

    LINUX = "linux"
    SMALL_GUESTS = "small guests"
    NONE = "none"


# The exit codes of ``pykvm doctor``.
CODES = {Level.LINUX: 0, Level.SMALL_GUESTS: 1, Level.NONE: 2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it all comes to, and why."""

    level: Level
    text: str

    @property
    def code(self) -> int:
        return CODES[self.level]


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything found out. Results, costs and capabilities are empty without a usable /dev/kvm."""

    verdict: Verdict
    host: dict[str, str]
    results: dict[str, Result] = field(default_factory=dict)
    costs: dict[str, float | None] = field(default_factory=dict)
    capabilities: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For programs. Keys are added, never renamed."""
        linux = {check.key: check.linux for check in CHECKS}
        return {
            "pykvm": __version__,
            "verdict": {
                "level": self.verdict.level.value,
                "code": self.verdict.code,
                "text": self.verdict.text,
            },
            "host": self.host,
            "checks": {
                key: {"ok": result.ok, "detail": result.detail, "linux_needs_it": linux[key]}
                for key, result in self.results.items()
            },
            "costs": self.costs,
            "capabilities": self.capabilities,
        }


def examine() -> Examination:
    """Run everything: a second or two. A KVM that fails is a verdict, not an error."""
    host = describe_host()
    try:
        kvm = Kvm()
    except KvmError as error:
        return Examination(Verdict(Level.NONE, f"no usable KVM: {error}"), host)
    from pykvm.doctor import costs

    host["kvm_api"] = str(API_VERSION)
    with kvm:
        with Host(kvm) as patient:
            results = {check.key: check.run(patient) for check in CHECKS}
        verdict = judge(results)
        return Examination(
            verdict,
            host,
            results,
            costs.measure(kvm) if verdict.level is not Level.NONE else {},
            capabilities.read(kvm),
        )


def judge(results: dict[str, Result]) -> Verdict:
    """The verdict that the checks' results come to."""
    if not any(results[mode].ok for mode in MODES):
        return Verdict(Level.NONE, f"no usable KVM: {results[MODES[-1]].detail}")
    failed = [check for check in CHECKS if check.linux and results[check.key].ok is False]
    if not failed:
        return Verdict(Level.LINUX, "runs Linux")
    first = _most_telling(failed)
    return Verdict(
        Level.SMALL_GUESTS,
        f"runs small guests only: {complaint(first, results[first.key])} here; use 'pykvm lab --'",
    )


def _most_telling(failed: list[Check]) -> Check:
    """SYSCALL when it is among them: no 64-bit program gets anywhere without."""
    return min(failed, key=lambda check: check.key != "syscall")


def describe_host() -> dict[str, str]:
    """The host: kernel, CPU, and what virtualization its CPU shows."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        flags = []
    hardware = [name for name, flag in (("SVM", "svm"), ("VMX", "vmx")) if flag in flags]
    return {
        "kernel": os.uname().release,
        "cpu": cpu_model(),
        "virtualization": " ".join(hardware) or "none in CPUID",
        "hypervisor": "yes" if "hypervisor" in flags else "no",
    }
