"""Three system calls, and an instruction that ring 3 may not use."""

from pykvm import Machine, MachineConfig
from pykvm.guest_programs import path

vm = Machine(MachineConfig(kernel=path("ring3")))
for line in vm.run(timeout=10).console.decode().splitlines():
    if "INT 0x80" not in line:  # see below
        print(line)

cpu = vm.vcpus[0]
gdt = cpu.get_sregs().gdt.base
for name, selector in (("kernel code", 0x08), ("user data", 0x10), ("user code", 0x18)):
    descriptor = int.from_bytes(vm.memory.read(gdt + selector, 8), "little")
    print(f"{name}: DPL {descriptor >> 45 & 3}")

table = cpu.read_register("cr3")
for level in ("PML4E", "PDPTE", "PDE"):
    entry = int.from_bytes(vm.memory.read(table, 8), "little")
    print(f"{level}: user {entry >> 2 & 1}")
    table = entry & 0x000F_FFFF_FFFF_F000
print("ended in ring", cpu.read_register("cs") & 3)
vm.close()
