"""What QEMU loads: the kernel decompressed, and an initrd of the agent and the modules it inserts.

Reached from `machine`. The initrd's guest side is guests/lab-agent/boot.c. Both are made once and
kept in the cache: decompressing is work that the emulated machine, where it takes a second, and the
next start need not do again.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

from pykvm import cache, guest_programs
from pykvm.boot import initrd
from pykvm.boot.setupheader import SetupHeader
from pykvm.boot.vmlinux import find_payload, unpack
from pykvm.errors import BootError, HostError

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.boot.kernels import Kernel

# What the agent needs or a user of KVM looks for. A kernel that has one of them built in has no
# file for it, and needs none; what they depend on is found in the files themselves.
MODULES: Final = (
    "virtio_pci",
    "virtio_console",  # the port
    "virtiofs",  # the host's file system
    "overlay",
    "kvm-amd",
    "tun",  # TAP
    "bridge",
    "vhost_net",
    "vhost_vsock",
)

VMLINUX_MAX: Final = 256 << 20
# An ELF note "Xen" of type 18, XEN_ELFNOTE_PHYS32_ENTRY: QEMU enters an ELF kernel there (PVH).
PVH_NOTE: Final = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")

SIGNATURE_END: Final = b"~Module signature appended~\n"
SIGNATURE_INFO_SIZE: Final = 12  # struct module_signature; its last 4 bytes: the signature's size


def make_kernel(kernel: Kernel) -> Path:
    """Return the path of `kernel` decompressed, or of its image when that cannot be."""
    image = memoryview(kernel.image.read_bytes())
    path = _cached("vmlinux", kernel, bytes(image))
    if not path.exists():
        try:
            vmlinux = unpack(
                find_payload(image, SetupHeader.parse(image)) or image[:0], VMLINUX_MAX
            )
        except BootError:
            vmlinux = b""
        if not PVH_NOTE.search(vmlinux):
            return kernel.image
        cache.atomic_write(path, vmlinux)
    return path


def make_initrd(kernel: Kernel) -> Path:
    """Return the path of the initrd for `kernel`.

    Raises `HostError` when the kernel comes without modules or the agent has not been built.
    """
    from pathlib import Path

    if kernel.modules is None:
        raise HostError(f"kernel {kernel.name} has no modules; try `pykvm kernel fetch 6.12-cloud`")
    agent = Path(guest_programs.path("lab-agent")).read_bytes()
    path = _cached("initrd", kernel, agent + repr((str(kernel.modules), MODULES)).encode())
    if not path.exists():
        files = {
            f"modules/{number:02}-{name}.ko": data
            for number, (name, data) in enumerate(load_order(kernel.modules).items())
        }
        cache.atomic_write(path, initrd.build(agent, files))
    return path


def _cached(kind: str, kernel: Kernel, inputs: bytes) -> Path:
    """Return where the cache keeps what is made of `inputs`."""
    directory = cache.cache_dir() / "lab"
    directory.mkdir(exist_ok=True)
    return directory / f"{kind}-{kernel.name}-{hashlib.sha256(inputs).hexdigest()[:16]}"


def load_order(tree: Path, wanted: tuple[str, ...] = MODULES) -> dict[str, bytes]:
    """Return the `wanted` modules that module tree `tree` has, each behind those it depends on."""
    files = {_name(path.name): path for path in tree.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in files and name not in order:
            module = unsigned(decompressed(files[name]))
            for dependency in depends(module):
                add(_name(dependency))
            order[name] = module

    for name in wanted:
        add(_name(name))
    return order


def decompressed(path: Path) -> bytes:
    """Return the module in file `path`, whose suffix tells how it is compressed."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        import lzma

        return lzma.decompress(data)
    if path.suffix == ".gz":
        import gzip

        return gzip.decompress(data)
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise HostError(f"{path} needs `pip install zstandard`") from None
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def depends(module: bytes) -> list[str]:
    """Return the names of the modules `module` depends on, as its .modinfo section tells."""
    _, _, rest = module.partition(b"\0depends=")
    return [name for name in rest.partition(b"\0")[0].decode().split(",") if name]


def unsigned(module: bytes) -> bytes:
    """Return `module` without its signature: checking it would take the lab longer than the rest.

    Linux Documentation/admin-guide/module-signing.rst, "Signed modules and stripping".
    """
    if not module.endswith(SIGNATURE_END):
        return module
    end = len(module) - len(SIGNATURE_END)
    size = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - SIGNATURE_INFO_SIZE - size]


def _name(file_or_module: str) -> str:
    """A module's name: kvm_amd for "kvm-amd.ko.xz" and for "kvm-amd"."""
    return os.path.basename(file_or_module).partition(".ko")[0].replace("-", "_")
