"""The 64-bit Linux entry into a vmlinux: long mode, paging on, RSI at the zero page.

Reached from `boot.load()` for an ELF64 and from `bzimage` for one it has taken out of a bzImage.
Source: Linux Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL"; the entry is the vmlinux'
own (startup_64), as the decompressor in a bzImage would jump to it. Randomising the kernel's
address (KASLR) is the decompressor's work too: entered here, a kernel runs where it was linked.
"""

from __future__ import annotations

from pykvm.boot import elf
from pykvm.boot.bootparams import write_zero_page
from pykvm.boot.claims import Claims
from pykvm.boot.entry import CpuMode, Entry
from pykvm.boot.setupheader import SetupHeader
from pykvm.errors import BootError
from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.entry import BootSpec
    from pykvm.memory import GuestMemory


def load(
    image: memoryview,
    memory: GuestMemory,
    spec: BootSpec,
    header: SetupHeader | None = None,
    file: int | None = None,
) -> Entry:
    """Load an ELF64 and enter it at its entry point; `header` is that of its bzImage.

    `file` is the descriptor of the file that `image` maps, if any. Raises `BootError`.
    """
    kernel = elf.parse(image)
    if kernel.bits != 64:
        raise BootError("KERNEL: --protocol linux64 needs a 64-bit ELF; this one has 32 bits")
    rip = kernel.physical_entry()
    claims = Claims(memory, spec, CpuMode.LONG)
    elf.load_segments(kernel, memory, claims, file)
    regs = write_zero_page(memory, spec, claims, header or SetupHeader.for_vmlinux())
    return Entry("linux64", CpuMode.LONG, rip, regs, symbols=kernel.symbols, linked=kernel.linked)
