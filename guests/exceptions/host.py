"""Four exceptions and one too many."""

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.guest_programs import path

vm = Machine(MachineConfig(kernel=path("exceptions")))
print(vm.run(timeout=10).console.decode(), end="")

def gate(vector):
    """The handler's address, the selector and the type of a gate."""
    data = vm.memory.read(vm.vcpus[0].get_sregs().idt.base + 16 * vector, 16)
    address = data[0:2] + data[6:12]
    return (
        int.from_bytes(address, "little"),
        int.from_bytes(data[2:4], "little"),
        data[5],
    )


for vector, name in ((0, "#DE"), (3, "#BP"), (13, "#GP"), (14, "#PF")):
    address, selector, kind = gate(vector)
    print(
        f"{name}: {'a handler' if address else 'none'}, selector {selector:#04x}, type {kind:#04x}"
    )
vm.close()

config = MachineConfig(kernel=path("triplefault"), mode=CpuMode.PROTECTED)
with Machine(config) as vm:
    outcome = vm.run(timeout=10)
print(outcome.reason.value, outcome.code)
print(outcome.report.splitlines()[0])
