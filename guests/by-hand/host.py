"""A virtual machine in one file: ctypes, /dev/kvm and nothing else."""

import ctypes
import fcntl
import mmap
import os
from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

READ, WRITE = 2 << 30, 1 << 30  # as the kernel sees it: it writes to us, it reads from us


class Region(Structure):  # struct kvm_userspace_memory_region
    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class Regs(Structure):  # struct kvm_regs
    _fields_ = [(name, c_uint64) for name in "rax rbx rcx rdx rsi rdi rsp rbp".split()]
    _fields_ += [(f"r{n}", c_uint64) for n in range(8, 16)]
    _fields_ += [("rip", c_uint64), ("rflags", c_uint64)]


class Segment(Structure):  # struct kvm_segment
    _fields_ = [("base", c_uint64), ("limit", c_uint32), ("selector", c_uint16)]
    _fields_ += [(name, c_uint8) for name in "type present dpl db s l g avl unusable pad".split()]


class Table(Structure):  # struct kvm_dtable
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class Sregs(Structure):  # struct kvm_sregs
    _fields_ = [(name, Segment) for name in "cs ds es fs gs ss tr ldt".split()]
    _fields_ += [("gdt", Table), ("idt", Table)]
    _fields_ += [(name, c_uint64) for name in "cr0 cr2 cr3 cr4 cr8 efer apic_base".split()]
    _fields_ += [("interrupt_bitmap", c_uint64 * 4)]


class Io(Structure):  # the member `io` of the union in struct kvm_run
    _fields_ = [("direction", c_uint8), ("size", c_uint8), ("port", c_uint16)]
    _fields_ += [("count", c_uint32), ("data_offset", c_uint64)]


class Run(Structure):  # the beginning of struct kvm_run
    _fields_ = [("request_interrupt_window", c_uint8), ("immediate_exit", c_uint8)]
    _fields_ += [("padding", c_uint8 * 6), ("exit_reason", c_uint32)]
    _fields_ += [("ready_for_interrupt_injection", c_uint8), ("if_flag", c_uint8)]
    _fields_ += [("flags", c_uint16), ("cr8", c_uint64), ("apic_base", c_uint64), ("io", Io)]


def number(direction, nr, structure=None):
    size = ctypes.sizeof(structure) if structure else 0
    return direction | size << 16 | 0xAE << 8 | nr


KVM_GET_API_VERSION = number(0, 0x00)
KVM_CREATE_VM = number(0, 0x01)
KVM_GET_VCPU_MMAP_SIZE = number(0, 0x04)
KVM_CREATE_VCPU = number(0, 0x41)
KVM_SET_USER_MEMORY_REGION = number(WRITE, 0x46, Region)
KVM_RUN = number(0, 0x80)
KVM_GET_REGS = number(READ, 0x81, Regs)
KVM_SET_REGS = number(WRITE, 0x82, Regs)
KVM_GET_SREGS = number(READ, 0x83, Sregs)
KVM_SET_SREGS = number(WRITE, 0x84, Sregs)
KVM_EXIT_IO, KVM_EXIT_HLT = 2, 5

kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
print("KVM's API version:", fcntl.ioctl(kvm, KVM_GET_API_VERSION))

vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
memory = mmap.mmap(-1, 4096)
hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))  # host virtual address
region = Region(slot=0, guest_phys_addr=0x1000, memory_size=4096, userspace_addr=hva)
fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, region)

memory[:18] = bytes.fromhex(
    "ba f8 03"  # mov $0x3f8, %dx     the serial port of a PC
    "00 d8"  #    add %bl, %al
    "04 30"  #    add $'0', %al       the digit
    "ee"  #       out %al, %dx
    "b0 0a"  #    mov $'\n', %al
    "ee"  #       out %al, %dx
    "f4"  #       hlt
    "90 90 90 90 90 90"  # nop: room for more
)
print(f"the guest's {len(memory)} bytes are at {region.guest_phys_addr:#x} for it")

vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE))
run = Run.from_buffer(shared)

sregs = Sregs()
fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
print(f"after reset: cs:ip = {sregs.cs.base:#x}:0xfff0, cr0.pe = {sregs.cr0 & 1}")
sregs.cs.base = sregs.cs.selector = 0
fcntl.ioctl(vcpu, KVM_SET_SREGS, sregs)
fcntl.ioctl(vcpu, KVM_SET_REGS, Regs(rip=0x1000, rax=2, rbx=2, rflags=2))

while True:
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    if run.exit_reason == KVM_EXIT_IO:
        data = shared[run.io.data_offset : run.io.data_offset + run.io.size]
        print(data.decode(), end="")
    elif run.exit_reason == KVM_EXIT_HLT:
        print("the guest halted")
        break
    else:
        raise SystemExit(f"an exit that this file does not know: {run.exit_reason}")
