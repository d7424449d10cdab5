"""What this host's KVM can do, found out by running small guests on it.

Reached from `cli_doctor` (everything, told) and `cli_boot` (one question: can it run Linux?). The
latter asks a few probes once per boot of the host and keeps the answer in the cache, because
``pykvm boot`` must start fast; only then is more than this file imported. Read `doctor.checks`.
"""

from __future__ import annotations

import os

from pykvm import __version__
from pykvm.errors import HostError

SMALL_GUESTS_ONLY = "this host's KVM runs small guests only"


def why_not_linux() -> str | None:
    """Why this host's KVM cannot run Linux, in half a sentence, or None when it can.

    Raises `KvmError` when there is no usable KVM at all.
    """
    key = _host_key()
    answer = _recall(key)
    if answer is None:
        answer = _ask()
        _remember(key, answer)
    return answer or None


def _ask() -> str:
    """Run the probes Linux depends on, up to the first that fails. Empty: none did."""
    from pykvm.doctor.checks import CHECKS, complaint
    from pykvm.doctor.host import Host
    from pykvm.kvm import Kvm

    # SYSCALL first: where it works, ring 0 is real and hardly anything else fails.
    needed = sorted((c for c in CHECKS if c.linux), key=lambda c: c.key != "syscall")
    with Kvm() as kvm, Host(kvm) as host:
        for check in needed:
            result = check.run(host)
            if result.ok is False:
                return f"{SMALL_GUESTS_ONLY} ({complaint(check, result)})"
    return ""


# ── the answer, remembered ───────────────────────────────────────────────────────────────────────
#
# A file of two lines: what the answer depends on, the answer.


def _host_key() -> str:
    """What the answer depends on: this boot of this kernel, this CPU, this /dev/kvm, this pykvm.

    The CPU's model too, because a machine may be resumed on another one without a boot.
    """
    from pykvm.guest_programs import path

    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    try:
        device = os.stat("/dev/kvm").st_rdev
    except OSError:
        device = 0
    probes = os.stat(path("probe"))
    release = os.uname().release
    parts = (__version__, probes.st_size, probes.st_mtime_ns, boot, release, device, cpu_model())
    return " ".join(map(str, parts))


def cpu_model() -> str:
    """The host CPU's name, from /proc/cpuinfo. Empty when that does not tell."""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            text = file.read(1024).decode(errors="replace")  # the first CPU's; there may be 1000
    except OSError:
        return ""
    _, _, rest = text.partition("model name\t: ")
    return rest.partition("\n")[0]


def _cache_file() -> str:
    from pykvm.cache import cache_name

    return os.path.join(cache_name(), "why-not-linux")


def _recall(key: str) -> str | None:
    try:
        with open(_cache_file()) as file:
            known, _, answer = file.read().partition("\n")
    except (OSError, ValueError, HostError):
        return None
    return answer.strip() if known == key else None


def _remember(key: str, answer: str) -> None:
    from pykvm.cache import atomic_write, cache_dir

    try:
        atomic_write(cache_dir() / os.path.basename(_cache_file()), f"{key}\n{answer}\n".encode())
    except (OSError, HostError):
        return  # no place to keep it: ask again next time
