"""Whether this host's processor and KVM can run a guest that was captured elsewhere.

Reached from `template`, for snapshots from disk. A guest has looked at CPUID long ago and believes
it: what it found must be there. Read `cpuid` for the names.
"""

from __future__ import annotations

from functools import lru_cache

from pykvm.cpuid import FEATURES
from pykvm.errors import ConfigError
from pykvm.kvm import unpack_cpuid
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import CpuidEntry, Kvm

BY_PYKVM = ("hypervisor", "tsc_deadline_timer", "ht", "cmp_legacy", "osxsave", "ospke")

_fitting: set[bytes] = set()  # tables that were found to; a host does not change


def check_cpuid(kvm: Kvm, table: bytes) -> None:
    """Raises `ConfigError` when the guest's CPUID promises what this host does not have."""
    if table in _fitting:
        return
    saved = unpack_cpuid(table)
    have = {(entry.function, entry.index): entry for entry in kvm.supported_cpuid()}
    want = {(entry.function, entry.index): entry for entry in saved}
    ours, theirs = have.get((0, 0)), want.get((0, 0))
    if ours is None or theirs is None or ours[4:] != theirs[4:]:
        raise ConfigError(
            f"the snapshot is of a guest on a processor by {_vendor(theirs)}, and this host's is "
            f"by {_vendor(ours)}: it cannot go on here; boot it here instead"
        )
    missing = []
    for (function, index, register), names in _registers().items():
        wanted = want.get((function, index))
        if wanted is not None:
            found = have.get((function, index), _nothing(wanted))
            lacking = getattr(wanted, register) & ~getattr(found, register)
            missing += [name for bit, name in names.items() if lacking >> bit & 1]
    if missing:
        raise ConfigError(
            "the snapshot is of a guest on a processor with features that this host lacks: "
            f"{', '.join(missing)}; boot with --cpu host,-{',-'.join(missing)} where it is taken"
        )
    _fitting.add(table)


@lru_cache
def _registers() -> dict[tuple[int, int, str], dict[int, str]]:
    """The features that the host must have, by bit, of each of CPUID's registers."""
    found: dict[tuple[int, int, str], dict[int, str]] = {}
    for name, (function, index, register, bit) in FEATURES.items():
        if name not in BY_PYKVM:
            found.setdefault((function, index, register), {})[bit] = name
    return found


def _nothing(entry: CpuidEntry) -> CpuidEntry:
    return entry._replace(eax=0, ebx=0, ecx=0, edx=0)


def _vendor(entry: CpuidEntry | None) -> str:
    """CPUID 0H: the name is in EBX, EDX, ECX."""
    if entry is None:
        return "nobody"
    name = b"".join(word.to_bytes(4, "little") for word in (entry.ebx, entry.edx, entry.ecx))
    return name.decode(errors="replace")
