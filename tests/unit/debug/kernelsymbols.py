"""An object file for gdb with the names of a kernel that was shipped without symbols.

Reached from `test_gdb`. Read `pykvm.debug.kallsyms`, where the names come from. The file has no
bytes of the kernel's: gdb reads them from the guest. Its one section belongs at `LINKED`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from pykvm.boot.files import open_image
from pykvm.boot.setupheader import SetupHeader
from pykvm.boot.vmlinux import extract, find_payload
from pykvm.debug import kallsyms

LINKED, END = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_C000_0000  # Linux: __START_KERNEL, MODULES_VADDR
PLAIN = re.compile(r"[A-Za-z_]\w*")  # what the assembler takes as a name; the others are compiler's


def make(kernel: str, path: Path) -> dict[str, int]:
    """Write the file; return the symbols of the bzImage `kernel`."""
    image = open_image(kernel)
    payload = find_payload(image.data, SetupHeader.parse(image.data))
    assert payload is not None
    with extract(payload, 1 << 30) as vmlinux:
        found = kallsyms.read(vmlinux.image)
    symbols = {name: at for at, name in found if LINKED <= at < END and PLAIN.fullmatch(name)}
    size = max(symbols.values()) - LINKED + 4096
    lines = [
        '.section .kernel, "ax", @nobits', ".Lbase:",
        *(f".type {n}, @function\n.set {n}, .Lbase + {a - LINKED:#x}" for n, a in symbols.items()),
        f".zero {size:#x}",
    ]  # fmt: skip
    source = path.with_suffix(".s")
    source.write_text("\n".join(lines) + "\n")
    subprocess.run(["as", "-o", path, source], check=True)
    return symbols
