"""Starting the other processors."""

from pykvm import Machine, MachineConfig
from pykvm.guest_programs import path

STATES = {0: "runnable", 1: "uninitialized", 2: "INIT received", 3: "halted", 4: "SIPI received"}


def states():
    return ", ".join(STATES[cpu.get_mp_state()] for cpu in vm.vcpus)


vm = Machine(MachineConfig(kernel=path("smp"), cpus=2))
print("before:", states())
print(vm.run(timeout=10).console.decode(), end="")
print("after:", states())
vm.close()
