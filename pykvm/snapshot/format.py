"""The format on disk, versions 1 and 2: a folder with a JSON head and two files of raw bytes.

Reached from `save` and `load`. docs/snapshots.md describes it for other programs.

::

    DIR/snapshot.json   what it is, who made it, the machine's configuration, and of the others
                        sizes and checksums; its own `checksum` is over all the rest
    DIR/state           the parts (`capture`), one after the other, in the head's order
    DIR/memory          guest memory, sparse: low memory, then high memory

Version 2 is that of a differential snapshot: its memory has only the pages that changed since its
base was taken, which the head names. A pykvm that knows only version 1 must not take it for whole.
"""

from __future__ import annotations

import os
import zlib

from pykvm import leanjson
from pykvm.boot.entry import CpuMode, Entry
from pykvm.config import MachineConfig
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from pykvm.snapshot.capture import Parts

FORMAT: Final = "pykvm snapshot"
VERSION: Final = 1
DIFFERENTIAL: Final = 2  # the version of those that need their base
HEAD, STATE, MEMORY = "snapshot.json", "state", "memory"
FIELDS: Final = frozenset(
    {
        *("format", "version", "checksum", "id", "saved", "pykvm", "generation", "config"),
        *("entry", "disks", "copies", "memory", "base", "compacted", "state"),
    }
)
HEAD_MAX: Final = 64 << 20  # bytes

ADDRESSES: Final = "ipaddress"  # the module; see `encode_config`
# They are in the guest's memory; or how long to wait for them.
NOT_SAVED: Final = ("kernel", "initrd", "modules", "cmdline", "patience")


# ── the head ─────────────────────────────────────────────────────────────────────────────────────


def checksum(head: dict[str, Any]) -> str:
    """Of all the head's fields but `checksum`, in the shortest JSON with sorted names."""
    fields = {name: value for name, value in head.items() if name != "checksum"}
    return f"{zlib.crc32(leanjson.dumps(fields).encode()):08x}"


def complete_head(head: dict[str, Any]) -> dict[str, Any]:
    """The head with format, version and checksum."""
    version = DIFFERENTIAL if "base" in head else VERSION
    head = {"format": FORMAT, "version": version, **head}
    return {**head, "checksum": checksum(head)}


def encode_head(head: dict[str, Any]) -> bytes:
    """A complete head as a file; one field a line, for people who look."""
    import json

    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def decode_head(data: bytes, folder: str) -> dict[str, Any]:
    """The head's fields. Raises `ConfigError` when it is damaged or of another version."""
    try:
        head = leanjson.loads(data)
        if not isinstance(head, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise damaged(folder, f"{HEAD} is not JSON") from None
    if head.get("format") != FORMAT:
        raise damaged(folder, f"{HEAD} is not the head of one")
    if head.get("version") not in (VERSION, DIFFERENTIAL):
        raise ConfigError(
            f"snapshot {folder}: its format is version {head.get('version')}, and this pykvm knows "
            f"versions {VERSION} and {DIFFERENTIAL}; take it anew, or restore it with the pykvm "
            f"that made it ({head.get('pykvm')})"
        )
    if head.get("checksum") != checksum(head):
        raise damaged(folder, f"{HEAD} does not match its checksum")
    if unknown := head.keys() - FIELDS:
        raise unknown_fields("its head", unknown)
    if ("base" in head) != (head["version"] == DIFFERENTIAL):
        raise damaged(folder, f"{HEAD} says both that it has a base and that it has none")
    return head


def unknown_fields(what: str, names: Iterable[str]) -> ConfigError:
    """Whoever does not know a field does not know what it leaves out."""
    return ConfigError(
        f"snapshot: {what} has fields that this pykvm does not know ({', '.join(sorted(names))}); "
        "restore it with the pykvm that made it, or take it anew"
    )


def damaged(folder: str, what: str) -> ConfigError:
    return ConfigError(f"snapshot {folder} is damaged: {what}; take it anew")


# ── the parts ────────────────────────────────────────────────────────────────────────────────────


def describe_parts(parts: Parts) -> list[list[Any]]:
    """The head's table of `state`: name, size and checksum of each part."""
    return [[name, len(data), zlib.crc32(data)] for name, data in parts.items()]


def cut_parts(data: bytes, table: list[list[Any]], folder: str) -> Parts:
    """The parts in `state`. Raises `ConfigError` when they are not what the head says."""
    if len(data) != sum(size for _, size, _ in table):
        raise damaged(folder, f"{STATE} has {len(data)} bytes")
    parts, at = {}, 0
    for name, size, crc in table:
        part = data[at : at + size]
        if zlib.crc32(part) != crc:
            raise damaged(folder, f"{name} in {STATE} does not match its checksum")
        parts[name] = part
        at += size
    return parts


# ── the configuration ────────────────────────────────────────────────────────────────────────────


def encode_config(value: Any) -> Any:
    """A configuration as JSON has it: a record becomes {"a": its class, its fields}, an address
    {"a": its class, "text": how it is written}, bytes {"a": "bytes", "text": their digits}."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {
            name: encode_config(field)
            for name, field in zip(value._fields, value, strict=True)
            if not (isinstance(value, MachineConfig) and name in NOT_SAVED)
        }
        kind = type(value)
        return {"a": f"{kind.__module__}.{kind.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [encode_config(item) for item in value]
    if isinstance(value, CpuMode):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes):
        return {"a": "bytes", "text": value.hex()}
    kind = type(value)
    if kind.__module__ == ADDRESSES:
        return {"a": f"{ADDRESSES}.{kind.__name__}", "text": str(value)}
    return value


def decode_config(value: Any) -> Any:
    """What `encode_config` was given. Only records of pykvm's own are made."""
    if isinstance(value, list):
        return tuple(map(decode_config, value))
    if not isinstance(value, dict):
        return value
    if value["a"] == "bytes":
        return bytes.fromhex(value["text"])
    module, _, name = value["a"].rpartition(".")
    if module == ADDRESSES and name in ("IPv4Interface", "IPv4Address"):
        return getattr(_module(module), name)(value["text"])
    kind = getattr(_module(module), name) if module.startswith("pykvm.") else None
    if not (isinstance(kind, type) and issubclass(kind, tuple)):
        raise ValueError(f"{value['a']} is no configuration")
    fields = {name: decode_config(field) for name, field in value.items() if name != "a"}
    if unknown := fields.keys() - set(kind.__annotations__):
        raise unknown_fields(f"its {name}", unknown)
    if kind is MachineConfig:
        fields["kernel"] = b""
        fields["mode"] = CpuMode(fields["mode"]) if fields["mode"] else None
    return kind(**fields)


def _module(name: str) -> Any:
    return __import__(name, fromlist=["itself, not the package"])  # importlib is slow to import


def encode_entry(entry: Entry) -> dict[str, Any]:
    """How the guest was entered: by which protocol, in which mode."""
    return {"protocol": entry.protocol, "mode": entry.mode.value, "rip": entry.rip}


def decode_entry(fields: dict[str, Any]) -> Entry:
    return Entry(fields["protocol"], CpuMode(fields["mode"]), fields["rip"])
