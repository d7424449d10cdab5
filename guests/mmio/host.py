"""A device in ten lines: two numbers and their sum."""

from pykvm import ConfigError, Device, Machine, MachineConfig
from pykvm.guest_programs import path


class Adder(Device):
    name = "adder"

    def __init__(self):
        self.registers = {0: 0, 4: 0}

    def read(self, offset, size):
        return self.registers.get(offset, sum(self.registers.values()))

    def write(self, offset, size, value):
        if offset in self.registers:
            self.registers[offset] = value


vm = Machine(MachineConfig(kernel=path("mmio")))
vm.mmio(0xD000_0000, 0x1000)(Adder)
print(vm.run(timeout=10).console.decode(), end="")
vm.close()

with Machine(MachineConfig(kernel=path("mmio"))) as vm:

    @vm.mmio(0xD000_0000, 0x1000)
    class Watched(Adder):
        def read(self, offset, size):
            value = super().read(offset, size)
            print(f"read  {size} bytes at {offset:#x}: {value}")
            return value

        def write(self, offset, size, value):
            print(f"write {size} bytes at {offset:#x}: {value}")
            super().write(offset, size, value)

    vm.run(timeout=10)

with Machine(MachineConfig(kernel=path("mmio"))) as vm:
    try:
        vm.mmio(0x10_0000, 0x1000)(Adder)
    except ConfigError as error:
        print(error)
