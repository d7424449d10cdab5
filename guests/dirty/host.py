"""Which pages did it write to? And: there and back again."""

from pykvm import Machine, MachineConfig
from pykvm._core import ffi, lib
from pykvm.errors import check
from pykvm.guest_programs import path

PAGE = 4096
vm = Machine(MachineConfig(kernel=path("dirty"), memory=16 << 20))
limit = 0


@vm.pio(0x510, size=4)
def told(offset, size, value):
    if value is not None:
        print(value, end=" ")
        if value == limit:
            vm.stop()


def run_until(number):
    global limit
    limit = number
    vm.run(timeout=10)
    print()


run_until(3)

check(lib.pk_vm_map(vm.vm.fd, vm.memory.handle, lib.KVM_MEM_LOG_DIRTY_PAGES), "logging")


def dirty_pages():
    """The pages written to since the last time, and clear the log."""
    bitmap = ffi.new("uint64_t[]", vm.memory.size // PAGE // 64)
    log = ffi.new("struct kvm_dirty_log *", {"slot": 0, "dirty_bitmap": bitmap})
    check(lib.pk_ioctl(vm.vm.fd, lib.KVM_GET_DIRTY_LOG, log), "KVM_GET_DIRTY_LOG")
    return [64 * i + bit for i, word in enumerate(bitmap) for bit in range(64) if word >> bit & 1]


dirty_pages()  # forget what was before
run_until(6)
print([hex(page) for page in dirty_pages() if page >= 0x400])

cpu = vm.vcpus[0]
saved = cpu.get_regs(), cpu.get_sregs(), vm.memory.read(0, vm.memory.size)
dirty_pages()

run_until(9)

changed = dirty_pages()
for page in changed:
    vm.memory.write(page * PAGE, saved[2][page * PAGE : (page + 1) * PAGE])
cpu.set_regs(saved[0])
cpu.set_sregs(saved[1])
print(f"copied {len(changed)} pages of {vm.memory.size // PAGE}")

run_until(9)
vm.close()
