"""A bzImage, read and booted."""

import struct

from pykvm import Machine, MachineConfig, layout
from pykvm.doctor import why_not_linux
from pykvm.guest_programs import path

with open(path("tiny-linux"), "rb") as file:
    image = file.read()

magic, version = struct.unpack_from("<4sH", image, 0x202)
(name_at,) = struct.unpack_from("<H", image, 0x20E)
(xloadflags,) = struct.unpack_from("<H", image, 0x236)
name = image[name_at + 0x200 :].split(b"\0")[0].decode()
print(f"{magic.decode()}, boot protocol {version >> 8}.{version & 0xFF:02}, Linux {name}")
print(f"the kernel begins at sector {image[0x1F1] + 1}; 64-bit entry: {xloadflags & 1}")

vm = Machine(MachineConfig(kernel=path("tiny-linux"), cmdline="hello from the command line"))
zero_page = vm.memory.read(layout.ZERO_PAGE, 4096)
print(f"entry {vm.vcpus[0].read_register('rip'):#x}, rsi {vm.vcpus[0].read_register('rsi'):#x}")
(command_line,) = struct.unpack_from("<I", zero_page, 0x228)
print("cmd_line_ptr:", vm.memory.read(command_line, 27).decode())
print("memory map:")
for number in range(zero_page[0x1E8]):
    gpa, size, kind = struct.unpack_from("<QQI", zero_page, 0x2D0 + 20 * number)
    print(f"  {gpa:#011x} {gpa + size:#011x} {'RAM' if kind == 1 else 'reserved'}")

print(vm.run(timeout=10).console.decode(), end="")
vm.close()

problem = why_not_linux()
print("Linux on this host:", problem or "pykvm boot")
