"""The lab's initrd: the agent as /init, and the modules it inserts, decompressed.

Reached from `machine`. Its guest side is guests/lab-agent/boot.c. It is made once per kernel and
agent and kept in the cache: decompressing the modules is work that neither the emulated machine nor
the next start need do again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pykvm import cache, guest_programs
from pykvm.boot import initrd
from pykvm.errors import HostError

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
    "vhost_net",
    "vhost_vsock",
)

SIGNATURE_END: Final = b"~Module signature appended~\n"
SIGNATURE_INFO_SIZE: Final = 12  # struct module_signature; its last 4 bytes: the signature's size


def make(kernel: Kernel) -> Path:
    """Return the path of the initrd for `kernel`, made unless the cache has it.

    Raises `HostError` when the kernel comes without modules or the agent has not been built.
    """
    import hashlib
    from pathlib import Path

    if kernel.modules is None:
        raise HostError(f"kernel {kernel.name} has no modules; try `pykvm kernel fetch 6.12-cloud`")
    agent = Path(guest_programs.path("lab-agent")).read_bytes()
    key = hashlib.sha256(agent + repr((str(kernel.modules), MODULES)).encode()).hexdigest()[:16]
    path = cache.cache_dir() / "lab" / f"{kernel.name}-{key}.cpio"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        files = {
            f"modules/{number:02}-{name}.ko": data
            for number, (name, data) in enumerate(load_order(kernel.modules).items())
        }
        cache.atomic_write(path, initrd.build(agent, files))
    return path


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
