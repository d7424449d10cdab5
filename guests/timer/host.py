"""Timer interrupts, and what the interrupt controllers hold when they are over."""

from pykvm import Machine, MachineConfig
from pykvm._core import ffi
from pykvm.guest_programs import path

vm = Machine(MachineConfig(kernel=path("timer"), cmdline="ticks=10"))
outcome = vm.run(timeout=10)
print(outcome.console.decode(), end="")
print("fewer than 10 exits a tick:", outcome.stats.exits - outcome.stats.exits_in_c < 200)

def register(offset):
    state = vm.vcpus[0].get_lapic()
    return int.from_bytes(ffi.buffer(state.regs)[offset : offset + 4], "little")


timer = register(0x320)
print(f"enabled: {register(0x0F0) >> 8 & 1}")
print(f"timer: vector {timer & 0xFF:#x}, {'periodic' if timer >> 17 & 1 else 'one-shot'}")
print(f"LINT0: delivery mode {register(0x350) >> 8 & 7} (7 is ExtINT: the PIC's interrupts)")
vm.close()
