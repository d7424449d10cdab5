"""Exits, counted and timed."""

from pykvm import Machine, MachineConfig
from pykvm.boot.entry import CpuMode
from pykvm.guest_programs import path

COUNT = 3000


def run(port, count=COUNT):
    """Microseconds for each of `count` writes to `port`, and how many of them C answered."""
    config = MachineConfig(kernel=path("exits"), cmdline=f"count={count} port={port:#x}")
    with Machine(config) as vm:
        outcome = vm.run(timeout=30)
    return outcome.stats.seconds / count * 1e6, outcome.stats.exits_in_c


PORTS = {
    "C (serial port's scratch register)": 0x3FF,
    "Python (POST code)": 0x80,
    "Python (no device there)": 0x5FA,
}
for name, port in PORTS.items():
    microseconds, in_c = run(port)
    print(f"{name}: {microseconds:.1f} µs, {in_c} answered in C")

spin = bytes.fromhex(
    "b9 40 42 0f 00"  # mov $1000000, %ecx
    "ff c9"  #          1: dec %ecx
    "75 fc"  #          jnz 1b
    "66 ba f8 05"  #    mov $0x5f8, %dx
    "30 c0 ee"  #       xor %al, %al; out %al, %dx
)
with Machine(MachineConfig(kernel=spin, mode=CpuMode.LONG)) as vm:
    outcome = vm.run(timeout=30)
print(f"a million turns: {outcome.stats.exits} exit, code {outcome.code}")
