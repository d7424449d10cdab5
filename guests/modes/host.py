"""The way into long mode, and the page tables that a guest left behind."""

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.guest_programs import path

vm = Machine(MachineConfig(kernel=path("modes"), mode=CpuMode.REAL))
print(vm.run(timeout=10).console.decode(), end="")

cpu = vm.vcpus[0]
cr0, cr4, efer = (cpu.read_register(name) for name in ("cr0", "cr4", "efer"))
print(f"cr0: PE {cr0 & 1}, PG {cr0 >> 31}")
print(f"cr4: PAE {cr4 >> 5 & 1}")
print(f"efer: LME {efer >> 8 & 1}, LMA {efer >> 10 & 1}")
print(f"cs: {cpu.read_register('cs'):#04x}, 64-bit {cpu.get_sregs().cs.l}")

def walk(address):
    """Print every entry that the processor reads to translate `address`; return the result."""
    table = cpu.read_register("cr3")
    for name, shift in (("PML4E", 39), ("PDPTE", 30), ("PDE", 21), ("PTE", 12)):
        index = address >> shift & 511
        entry = int.from_bytes(vm.memory.read(table + 8 * index, 8), "little")
        bits = ("present", 0), ("writable", 1), ("accessed", 5), ("dirty", 6), ("large", 7)
        print(f"{name}[{index}] = {entry:#x}", *(bit for bit, at in bits if entry >> at & 1))
        if not entry & 1:
            return None
        table = entry & 0x000F_FFFF_FFFF_F000
        if entry >> 7 & 1:
            return table | address & (1 << shift) - 1
    return table | address & 0xFFF


print(f"0x7c00 is at {walk(0x7C00):#x}")
print("0x200000 is at", walk(0x20_0000))

vm.close()
