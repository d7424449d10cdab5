"""The kernel modules a guest needs for its devices: found, with dependencies, for the initrd.

Reached from `guestimage`, when a Linux guest has virtio devices. The other end is
guests/init/init.c, which loads what the `ORDER` file lists. A module's own ".modinfo" says what it
depends on, so no modules.dep is needed: depmod makes that on installing, and a kernel in the cache
is only unpacked.
Read Linux Documentation/kbuild/modules.rst, and kmod's modinfo(8).
"""

from __future__ import annotations

from pykvm.errors import BootError, HostError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Final

GUEST_DIR: Final = "pykvm/modules"  # where init looks for them
ORDER: Final = "order"  # the list it follows

TRANSPORTS: Final = {"pci": "virtio_pci", "mmio": "virtio_mmio"}
# What a guest with such a device needs, by the name of pykvm boot's option.
KINDS: Final = {
    "disk": ("virtio_blk", "crc32c_generic", "ext4"),  # ext4 asks for crc32c by its function
    "net": ("virtio_net",),
    "fs": ("fuse", "virtiofs"),
    "rng": ("virtio_rng",),
    "balloon": ("virtio_balloon",),
    "vsock": ("vmw_vsock_virtio_transport",),
    "ports": ("virtio_console",),
    "console": ("virtio_console",),
}

# What file systems need beside the module of their name, and do not say that they depend on.
FILE_SYSTEMS: Final = {
    "ext4": ("crc32c_generic", "ext4"),
    "btrfs": ("crc32c_generic", "btrfs"),
    "f2fs": ("crc32_generic", "f2fs"),
    "iso9660": ("isofs",),
    "vfat": ("nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8", "vfat"),
}

SUFFIXES: Final = ("", ".xz", ".gz", ".zst")  # how modules are compressed, if they are


def initrd_files(tree: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The modules `names` of the module tree `tree`, and all they depend on, as files for the
    initrd. Names that the tree does not have are left out: the kernel has them built in, or the
    guest will do without. Raises `BootError` for a module that cannot be read."""
    paths = _paths(tree)
    files: dict[str, bytes] = {}

    def add(name: str) -> None:
        file = f"{name}.ko"
        if name not in paths or file in files:
            return
        data = _read(tree, paths[name])
        for other in _dependencies(data):
            add(other)
        files[file] = data  # after what it depends on: init loads in this order

    for name in names:
        add(_normal(name))
    order = "".join(f"{file}\n" for file in files)
    return {f"{GUEST_DIR}/{file}": data for file, data in files.items()} | {
        f"{GUEST_DIR}/{ORDER}": order.encode()
    }


def unknown(tree: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that the kernel neither has as modules, in its `tree`, nor built in."""
    try:
        built_in = (tree / "modules.builtin").read_text().split()
    except OSError:
        return []  # there is no telling
    known = {*_paths(tree), *map(_name, built_in)}
    return [name for name in names if _normal(name) not in known]


def _normal(name: str) -> str:
    """To the kernel, dashes and underscores in a module's name are the same."""
    return name.replace("-", "_")


def _paths(tree: Path) -> dict[str, str]:
    """Every module's path in the tree, without what compression adds, by name."""
    try:
        lines = (tree / "modules.order").read_text().split()
    except OSError as error:
        raise BootError(f"{tree}/modules.order: {error.strerror}; cannot find modules") from None
    return {_name(line): line for line in lines}


def _name(path: str) -> str:
    return _normal(path.rpartition("/")[2].removesuffix(".ko"))


def _read(tree: Path, path: str) -> bytes:
    """A module's ELF file, decompressed: the kernel need not be able to."""
    for suffix in SUFFIXES:
        file = tree / (path + suffix)
        if file.is_file():
            return _decompress(file.read_bytes(), suffix)
    raise BootError(f"{tree / path}: the module is not there; fetch the kernel again")


def _decompress(data: bytes, suffix: str) -> bytes:
    match suffix:
        case ".xz":
            import lzma

            return lzma.decompress(data)
        case ".gz":
            import gzip

            return gzip.decompress(data)
        case ".zst":
            try:
                import zstandard
            except ImportError:
                raise HostError(
                    "this kernel's modules need Python's zstandard; pip install zstandard"
                ) from None
            return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(data))
    return data


def _dependencies(data: bytes) -> list[str]:
    """What ".modinfo", NAME=VALUE strings that each end with a NUL, says after "depends"."""
    at = data.find(b"\0depends=")
    if at < 0:
        return []
    value = data[at + 9 : data.index(b"\0", at + 9)].decode("ascii", "replace")
    return [_normal(name) for name in value.split(",") if name]
