"""Rate limits of a disk or network device: QEMU's names, ``bps=``, ``iops=`` and their ``_max``.

Reached from the modules beside it, one field `limits` each. csrc/ratelimit.c keeps them.
"""

from __future__ import annotations

from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, Record
from pykvm.virtio.config.words import number

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

RATE_MAX: Final = 1 << 50

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Limits(Record):
    """What may pass in a second, and at once after a rest. 0: no limit, and the default burst."""

    bps: int = 0  # bytes a second
    bps_max: int = 0  # bytes at once (default: a tenth of `bps`, as in QEMU)
    iops: int = 0  # operations a second
    iops_max: int = 0  # operations at once (default: a tenth of `iops`)

    def check(self, option: str) -> None:
        """Raise `ConfigError` naming `option` for limits that cannot be meant."""
        for rate, burst in (("bps", "bps_max"), ("iops", "iops_max")):
            for name in (rate, burst):
                if not 0 <= getattr(self, name) <= RATE_MAX:
                    raise ConfigError(
                        f"{option}: {name}={getattr(self, name)} is not a rate; try {name}=1M"
                    )
            if getattr(self, burst) and not getattr(self, rate):
                raise ConfigError(
                    f"{option}: {burst} is a burst above a limit; give {rate}=N as well"
                )

    def for_c(self) -> dict[str, int]:
        """A `struct pk_limits`."""
        return {
            "bytes": self.bps,
            "bytes_burst": self.bps_max or max(1, self.bps // 10),
            "ops": self.iops,
            "ops_burst": self.iops_max or max(1, self.iops // 10),
        }


def rate(text: str) -> int:
    """A number, or one with K, M or G behind it (powers of 1024). Raises `ValueError` for others
    and for 0, which would be no limit."""
    unit = _UNITS.get(text[-1:].upper(), 0)
    value = number(text[:-1] if unit else text) * (unit or 1)
    if value == 0:
        raise ValueError(text)
    return value


WORDS: Final[dict[str, Callable[[str], Any]]] = dict.fromkeys(
    ("bps", "bps_max", "iops", "iops_max"), rate
)


def take_limits(options: dict[str, Any]) -> Limits:
    """Move the words of `WORDS` out of what `split` found."""
    return Limits(**{name: options.pop(name) for name in WORDS if name in options})
