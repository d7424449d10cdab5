"""Every guest-physical address, port and interrupt line that pykvm chooses. Nowhere else.

Reached from the boot loaders, `machine` and `acpi`; drawn for people in docs/architecture.md.

::

    0x0_0000_0000 ┌───────────────────────────┐
                  │ real-mode IVT, BIOS data  │ what a PC has there; only the 16-bit entry uses it
    0x0_0000_0600 │ GDT                       │ flat segments for the 32- and 64-bit entries
    0x0_0000_1000 │ probes                    │ only in the probe guests of `pykvm doctor`
    0x0_0000_6000 │ start_info (PVH)          │
    0x0_0000_7000 │ boot_params (zero page)   │
    0x0_0000_8000 │ initial stack (grows ↓)   │
    0x0_0000_9000 │ page tables               │ 4 GiB identity map in 2 MiB pages: 6 pages
    0x0_0001_0000 │ 16-bit setup code         │
    0x0_0002_0000 │ kernel command line       │ 64 KiB
    0x0_0003_0000 │ multiboot information     │ 64 KiB
    0x0_0009_fc00 ├───────────────────────────┤ EBDA: end of conventional memory
    0x0_000a_0000 │ VGA window (plain memory) │ reserved in the e820 map
    0x0_000e_0000 │ ACPI tables, RSDP first   │ reserved in the e820 map
    0x0_000e_f000 │ VM generation id          │ a page of its own, reserved too
    0x0_000f_0000 │ BIOS stubs (16-bit entry) │
    0x0_000f_8000 │ MP table                  │ for kernels without ACPI
    0x0_0010_0000 ├───────────────────────────┤ the kernel, and the initrd at the top of low memory
                  │ low memory, up to 3 GiB   │
    0x0_c000_0000 ├───────────────────────────┤
                  │ hole: IOAPIC, LAPIC, MMIO │ PCI BARs from 0xc000_0000,
                  │                           │ virtio-mmio from 0xd000_0000,
                  │                           │ PCI configuration at 0xe000_0000,
                  │                           │ a test device's memory at 0xff00_0000
    0x1_0000_0000 ├───────────────────────────┤
                  │ high memory, the rest     │
                  └───────────────────────────┘
"""

from __future__ import annotations

from pykvm.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# ── guest-physical addresses ─────────────────────────────────────────────────────────────────
GDT: Final = 0x0000_0600
PROBES: Final = 0x0000_1000  # where guests/probe/ is linked
START_INFO: Final = 0x0000_6000  # struct hvm_start_info, its module list and memory map: 4 KiB
ZERO_PAGE: Final = 0x0000_7000  # struct boot_params: 4 KiB
BOOT_SECTOR: Final = 0x0000_7C00  # where a PC's BIOS loads one: real-mode flat binaries
BOOT_STACK: Final = 0x0000_9000  # initial stack pointer; 4 KiB below it are free
BOOT_STACK_SIZE: Final = 0x1000
PAGE_TABLES: Final = 0x0000_9000  # PML4, PDPT, four page directories
PAGE_TABLES_END: Final = 0x0000_F000
SETUP_CODE: Final = 0x0001_0000  # real-mode part of a bzImage entered in 16-bit mode
CMDLINE: Final = 0x0002_0000
CMDLINE_SIZE: Final = 64 * KIB
MULTIBOOT_INFO: Final = 0x0003_0000
MULTIBOOT_INFO_SIZE: Final = 64 * KIB
EBDA: Final = 0x0009_FC00  # Extended BIOS Data Area: end of conventional memory
VGA: Final = 0x000A_0000
VGA_TEXT: Final = 0x000B_8000  # the screen of a PC, in text mode
ACPI_TABLES: Final = 0x000E_0000  # RSDP here, 16-byte aligned, where firmware is searched
ACPI_TABLES_END: Final = 0x000E_F000
VM_GENERATION_ID: Final = 0x000E_F000  # 16 bytes in a page of its own, for they come and go
VM_GENERATION_ID_PAGE: Final = 0x1000
BIOS_ROM: Final = 0x000F_0000
MP_TABLE: Final = 0x000F_8000  # its pointer first, 16-byte aligned, where a BIOS is searched
HIGH_MEMORY: Final = 0x0010_0000  # 1 MiB
MMIO_HOLE: Final = 0xC000_0000  # low memory ends here at the latest (3 GiB)
MMIO_HOLE_END: Final = 0x1_0000_0000  # high memory starts here (4 GiB)
PCI_MMIO: Final = 0xC000_0000  # with --transport pci: where BARs may lie
PCI_MMIO_SIZE: Final = 256 * MIB
PCI_ECAM: Final = 0xE000_0000  # configuration space of bus 0, 4 KiB a function
PCI_ECAM_SIZE: Final = 1 * MIB
VIRTIO_MMIO: Final = 0xD000_0000  # with --transport mmio: one device a page
VIRTIO_MMIO_SIZE: Final = 0x1000
IOAPIC: Final = 0xFEC0_0000
LAPIC: Final = 0xFEE0_0000
TEST_MEMORY: Final = 0xFF00_0000  # QEMU's pc-testdev, for multiboot guests
TEST_MEMORY_SIZE: Final = 64 * KIB
IDENTITY_MAP: Final = 0xFFFB_C000  # KVM_SET_IDENTITY_MAP_ADDR: one page, VMX only
TSS: Final = 0xFFFB_D000  # KVM_SET_TSS_ADDR: three pages, VMX only

# ── I/O ports ────────────────────────────────────────────────────────────────────────────────
PORT_I8042: Final = 0x060  # data at 0x60, status/command at 0x64 (0x61 is the in-kernel PIT's)
PORT_I8042_COMMAND: Final = 0x064
PORT_RTC: Final = 0x070  # index 0x70, data 0x71
PORT_POST: Final = 0x080  # POST code / I/O delay
PORT_TEST: Final = 0x0E0  # QEMU's pc-testdev, for multiboot guests: 12 ports
PORT_DEBUG_EXIT: Final = 0x0F4  # QEMU isa-debug-exit: leave with (value << 1) | 1
PORT_CRTC: Final = 0x3D4  # a display's cursor: index 0x3D4, data 0x3D5, status 0x3DA
PORT_COM1: Final = 0x3F8
PORT_PVPANIC: Final = 0x505  # QEMU docs/specs/pvpanic.rst
PORT_FW_CFG: Final = 0x510  # QEMU docs/specs/fw_cfg.rst: selector 0x510, data 0x511
PORT_EXIT_CODE: Final = 0x5F8  # pykvm's own: a byte written here ends the machine with that code
PORT_SNAPSHOT: Final = 0x5F9  # pykvm's own: a byte written here asks for a snapshot
PORT_PM1A_EVENT: Final = 0x600  # ACPI PM1a status and enable, 4 bytes
PORT_PM1A_CONTROL: Final = 0x604  # ACPI PM1a control, 2 bytes
PORT_GPE0: Final = 0x606  # ACPI general-purpose events: status, then enable, a byte each
PORT_BIOS_CALL: Final = 0x6F0  # a BIOS stub writes SS:SP here; the call lies there, 4 bytes
PORT_PCI_CONFIG: Final = 0xCF8  # PCI configuration address and data
PORT_RESET: Final = 0xCF9  # reset control register (inside the PCI range)
PORT_TEST_LINES: Final = 0x2000  # pc-testdev: a byte here at offset n is the level of GSI n

# ── interrupts (GSI = ISA IRQ below 16) ──────────────────────────────────────────────────────
IRQ_KEYBOARD: Final = 1
IRQ_COM1: Final = 4
IRQ_RTC: Final = 8
IRQ_SCI: Final = 9  # ACPI's interrupt, level, active high
GSI_VIRTIO: Final = 16  # virtio device n has GSI 16 + n: the IOAPIC's pins above ISA's
VIRTIO_COUNT: Final = 8  # as many devices as there are such pins
GSI_MESSAGES: Final = 24  # GSIs from here on stand for messages (MSI-X), one a vector
