"""Real mode: a boot sector says hello, and a device of ours answers it."""

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.guest_programs import path

with Machine(MachineConfig(kernel=path("hello-real"), mode=CpuMode.REAL)) as vm:
    cpu = vm.vcpus[0]
    print(f"it begins at {cpu.read_register('cs'):04x}:{cpu.read_register('rip'):04x}")
    print("at 0000:7c00 there is", vm.memory.read(0x7C00, 4).hex(" "))
    outcome = vm.run(timeout=10)

print(outcome.console.decode(), end="")
print(f"{outcome.reason.value}: {outcome.code}")

print(f"{outcome.stats.exits_in_c} accesses answered in C, of {outcome.stats.exits} exits")

guest = bytes.fromhex(
    "ba 10 05"  # mov $0x510, %dx
    "ec"  #       in  %dx, %al
    "04 01"  #    add $1, %al
    "42"  #       inc %dx
    "ee"  #       out %al, %dx
    "ba f8 05"  # mov $0x5f8, %dx
    "30 c0"  #    xor %al, %al
    "ee"  #       out %al, %dx
)

with Machine(MachineConfig(kernel=guest, mode=CpuMode.REAL)) as vm:

    @vm.pio(0x510, size=2)
    def device(offset, size, value):
        if value is None:
            print(f"the guest reads port {0x510 + offset:#x}; we say 41")
            return 41
        print(f"the guest writes {value} to port {0x510 + offset:#x}")
        return None

    vm.run(timeout=10)
