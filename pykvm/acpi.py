"""The ACPI tables: how a kernel learns of its CPUs, interrupt controllers, COM1 and the way out.

Reached from `machine`, which calls `place()` before the loaders run. Read `layout` (the ports named
here), `devices/pm.py` (the registers the FADT describes) and `aml` (the DSDT's encoder) beside it.
Section numbers are those of the ACPI Specification 6.5.

::

    RSDP ─┬─ XSDT ─┬─ FADT ─┬─ FACS   (waking vector, global lock: mandatory, unused)
          └─ RSDT ─┤        └─ DSDT   (\\_S5, \\_SB: CPUs, COM1, RTC, panic port, VM
                   │                   generation id, virtio-mmio; \\_GPE: its event)
                   └─ MADT            (local APICs, IOAPIC, overrides)

Left out on purpose: the PM timer (kvmclock and the TSC are better, and each read would be an exit),
GPE1 (GPE0 has events to spare), HPET (KVM has none), a sleep button. MCFG is there with PCI only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from pykvm import aml, layout
from pykvm.devices.cmos import Register
from pykvm.devices.pm import GPE_NEW_ID, SLP_TYP_S5
from pykvm.errors import ConfigError
from pykvm.lean import TYPE_CHECKING, IntEnum, IntFlag

if TYPE_CHECKING:
    from typing import Final

    from pykvm.memory import GuestMemory

OEM_ID: Final = b"PYKVM "
OEM_TABLE_ID: Final = b"PYKVM   "
CREATOR_ID: Final = b"PYKV"

RESET_VALUE: Final = 0x06  # to layout.PORT_RESET: system reset, now

XAPIC_BROADCAST: Final = 0xFF  # the first APIC id that needs an x2APIC entry

HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")  # §5.2.6 System Description Table Header
assert HEADER.size == 36
RSDP: Final = struct.Struct("<8sB6sBIIQB3x")  # §5.2.5.3 Root System Description Pointer Structure
assert RSDP.size == 36
FACS: Final = struct.Struct("<4sIIIIIQB31x")  # §5.2.10 Firmware ACPI Control Structure
assert FACS.size == 64
FADT: Final = struct.Struct("<IIBBHI4B8I8B4H5BHBI12sBHBQQ" + 10 * "12s" + "Q")
assert HEADER.size + FADT.size == 276
GAS: Final = struct.Struct("<BBBBQ")  # §5.2.3.2 Generic Address Structure
assert GAS.size == 12


class Fadt(IntFlag):
    """§5.2.9 Fixed ACPI Description Table, "Fixed Feature Flags": those that are set.

    PWR_BUTTON stays clear: the power button is the fixed one, in the PM1 registers.
    """

    WBINVD = 1 << 0
    PROC_C1 = 1 << 2  # HLT works on every processor
    SLP_BUTTON = 1 << 5  # no fixed-feature sleep button
    FIX_RTC = 1 << 6  # no RTC wake status in the PM1 registers
    RESET_REG_SUP = 1 << 10


class BootArch(IntFlag):
    """§5.2.9.3 IA-PC Boot Architecture Flags: those that are set.

    8042 (bit 1) stays clear although port 0x64 answers: there is no keyboard behind it, only the
    reset line, and Linux then skips a probe of some hundred exits (drivers/input/serio/i8042).
    """

    LEGACY_DEVICES = 1 << 0  # COM1
    VGA_NOT_PRESENT = 1 << 2


class Madt(IntEnum):
    """§5.2.12 Multiple APIC Description Table, "Interrupt Controller Structure Types"."""

    LOCAL_APIC = 0
    IO_APIC = 1
    INTERRUPT_SOURCE_OVERRIDE = 2
    LOCAL_APIC_NMI = 4
    LOCAL_X2APIC = 9
    LOCAL_X2APIC_NMI = 10


ENABLED: Final = 1  # §5.2.12.2 Processor Local APIC Structure, "Local APIC Flags"
PCAT_COMPAT: Final = 1  # §5.2.12, "Multiple APIC Flags": a dual 8259 is there too
ACTIVE_HIGH_LEVEL: Final = 0b1101  # §5.2.12.5, "MPS INTI Flags": polarity 01, trigger 11


def checksum(data: bytes | bytearray) -> int:
    """Return the byte that makes the sum of all bytes zero modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Put a header, checksum included, before `body`."""
    size = HEADER.size + len(body)
    fields = (OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
    data = bytearray(HEADER.pack(signature, size, revision, 0, *fields) + body)
    data[9] = checksum(data)
    return bytes(data)


@lru_cache(maxsize=16)
def build(
    cpus: int,
    *,
    apic_ids: tuple[int, ...] | None = None,
    serial: tuple[tuple[int, int], ...] = ((layout.PORT_COM1, layout.IRQ_COM1),),
    virtio_mmio: tuple[tuple[int, int, int], ...] = (),
    pci: tuple[tuple[int, int], ...] | None = None,
) -> bytes:
    """Return all tables as they lie at `layout.ACPI_TABLES`, the RSDP first. They are kept, for the
    next machine with the same arguments.

    `apic_ids` has one id a CPU (default: 0, 1, 2 …), `serial` a (port, irq) a UART, `virtio_mmio` a
    (gpa, size, gsi) a device, `pci` a (slot, gsi) a device on a PCI bus, which None leaves out.
    Raises `ConfigError` when the tables outgrow their room, at some 1400 CPUs.
    """
    ids = range(cpus) if apic_ids is None else apic_ids
    blob = bytearray(RSDP.size)

    def put(data: bytes, align: int = 16) -> int:
        blob.extend(bytes(-len(blob) % align))
        gpa = layout.ACPI_TABLES + len(blob)
        blob.extend(data)
        return gpa

    facs = put(FACS.pack(b"FACS", FACS.size, 0, 0, 0, 0, 0, 2), align=64)
    dsdt = put(_dsdt(cpus, serial, virtio_mmio, pci))
    tables = [put(_fadt(facs, dsdt)), put(_madt(ids))]
    if pci is not None:
        tables.append(put(_mcfg()))
    # The RSDT repeats the XSDT for readers that know ACPI 1.0 only, as many small kernels do.
    rsdt = put(table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt = put(table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))

    rsdp = bytearray(RSDP.pack(b"RSD PTR ", 0, OEM_ID, 2, rsdt, RSDP.size, xsdt, 0))
    rsdp[8] = checksum(rsdp[:20])  # the ACPI 1.0 part alone
    rsdp[32] = checksum(rsdp)
    blob[: RSDP.size] = rsdp
    if len(blob) > layout.ACPI_TABLES_END - layout.ACPI_TABLES:
        raise ConfigError(f"--cpus: the ACPI tables have no room for {cpus} CPUs; try --cpus 1024")
    return bytes(blob)


def place(
    memory: GuestMemory,
    cpus: int,
    *,
    virtio_mmio: tuple[tuple[int, int, int], ...] = (),
    pci: tuple[tuple[int, int], ...] | None = None,
) -> int:
    """Write the tables into guest memory; return the gpa of the RSDP. Arguments as in `build()`."""
    memory.write(layout.ACPI_TABLES, build(cpus, virtio_mmio=virtio_mmio, pci=pci))
    return layout.ACPI_TABLES


def _port(address: int, bits: int, access: int) -> bytes:
    """A register in I/O space; `access` 1 is a byte, 2 a word (§5.2.3.2 Generic Address)."""
    return GAS.pack(1, bits, 0, access, address)


def _fadt(facs: int, dsdt: int) -> bytes:
    """§5.2.9 Fixed ACPI Description Table (FADT), signature FACP, revision 6.5."""
    none = bytes(GAS.size)
    # fmt: off
    body = FADT.pack(
        facs, dsdt,
        0, 0,                       # reserved, Preferred_PM_Profile: unspecified
        layout.IRQ_SCI,
        0, 0, 0, 0, 0,              # SMI_CMD … PSTATE_CNT: no SMM, always in ACPI mode
        layout.PORT_PM1A_EVENT, 0,
        layout.PORT_PM1A_CONTROL, 0,
        0, 0, layout.PORT_GPE0, 0,  # PM2_CNT, PM_TMR: none; GPE0; GPE1: none
        4, 2, 0, 0, 2, 0, 0, 0,     # lengths of PM1_EVT, PM1_CNT and GPE0; of none; CST_CNT
        0xFFFF, 0xFFFF,             # P_LVL2_LAT, P_LVL3_LAT: no C2 and no C3
        0, 0,                       # FLUSH_SIZE, FLUSH_STRIDE: WBINVD is there
        0, 0,                       # DUTY_OFFSET and DUTY_WIDTH: no clock throttling
        0, 0, Register.CENTURY,     # DAY_ALRM, MON_ALRM: none; CENTURY
        BootArch.LEGACY_DEVICES | BootArch.VGA_NOT_PRESENT,
        0,
        Fadt.WBINVD | Fadt.PROC_C1 | Fadt.SLP_BUTTON | Fadt.FIX_RTC | Fadt.RESET_REG_SUP,
        _port(layout.PORT_RESET, 8, 1), RESET_VALUE,
        0, 5,                       # ARM_BOOT_ARCH, minor version
        0, dsdt,                    # X_FIRMWARE_CTRL must be 0 when FIRMWARE_CTRL is not; X_DSDT
        _port(layout.PORT_PM1A_EVENT, 32, 2), none,
        _port(layout.PORT_PM1A_CONTROL, 16, 2), none,
        none, none, _port(layout.PORT_GPE0, 16, 1), none,  # PM2_CNT, PM_TMR, GPE0, GPE1
        none, none,                 # SLEEP_CONTROL, SLEEP_STATUS: hardware-reduced ACPI only
        0,                          # hypervisor vendor identity
    )
    # fmt: on
    return table(b"FACP", 6, body)


def _madt(apic_ids: Sequence[int]) -> bytes:
    """§5.2.12 Multiple APIC Description Table (MADT), signature APIC.

    There is one override. KVM's default routing wires GSI n to IOAPIC pin n, the PIT's GSI 0 to pin
    0 included (Linux arch/x86/kvm/irq_comm.c, default_routing), so the "IRQ 0 is pin 2" override of
    PC boards would be wrong here. ISA interrupts are edge-triggered and active high by default;
    only the SCI differs.
    """
    body = bytearray(struct.pack("<II", layout.LAPIC, PCAT_COMPAT))
    x2apic = False
    for uid, apic_id in enumerate(apic_ids):
        # §5.2.12.12: ids below 255 must use the short entry, whose uid is a byte.
        if apic_id < XAPIC_BROADCAST and uid < XAPIC_BROADCAST:
            body += struct.pack("<BBBBI", Madt.LOCAL_APIC, 8, uid, apic_id, ENABLED)
        else:
            x2apic = True
            body += struct.pack("<BBHIII", Madt.LOCAL_X2APIC, 16, 0, apic_id, ENABLED, uid)
    # The IOAPIC's id is a register the guest may rewrite; KVM starts it at 0.
    body += struct.pack("<BBBBII", Madt.IO_APIC, 12, 0, 0, layout.IOAPIC, 0)
    body += struct.pack(
        "<BBBBIH",
        Madt.INTERRUPT_SOURCE_OVERRIDE,
        10,
        0,  # bus: ISA
        layout.IRQ_SCI,
        layout.IRQ_SCI,
        ACTIVE_HIGH_LEVEL,
    )
    # NMI is wired to LINT1 of every processor.
    body += struct.pack("<BBBHB", Madt.LOCAL_APIC_NMI, 6, 0xFF, 0, 1)
    if x2apic:
        body += struct.pack("<BBHIB3x", Madt.LOCAL_X2APIC_NMI, 12, 0, 0xFFFF_FFFF, 1)
    return table(b"APIC", 5, bytes(body))


def _dsdt(
    cpus: int,
    serial: Sequence[tuple[int, int]],
    virtio_mmio: Sequence[tuple[int, int, int]],
    pci: Sequence[tuple[int, int]] | None,
) -> bytes:
    """§5.2.11.1 Differentiated System Description Table (DSDT): names and resources, and one
    method."""
    sleep_type = aml.integer(SLP_TYP_S5)
    zero = aml.integer(0)
    s5 = aml.name("_S5", aml.package(sleep_type, sleep_type, zero, zero))
    devices = [
        # §8.4 Declaring Processors: one device each, its _UID the MADT's processor UID.
        aml.device(
            f"C{uid:03X}",
            aml.name("_HID", aml.string("ACPI0007")),
            aml.name("_UID", aml.integer(uid)),
        )
        for uid in range(cpus)
    ]
    devices += [
        aml.device(
            f"COM{number}",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(number)),
            aml.name("_CRS", aml.resources(aml.io(port, 8), aml.irq(line))),
        )
        for number, (port, line) in enumerate(serial, start=1)
    ]
    devices += [
        aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name("_CRS", aml.resources(aml.io(layout.PORT_RTC, 2), aml.irq(layout.IRQ_RTC))),
        ),
        # QEMU docs/specs/pvpanic.rst: how a panicking Linux finds the port to tell us.
        aml.device(
            "PEVT",
            aml.name("_HID", aml.string("QEMU0001")),
            aml.name("_CRS", aml.resources(aml.io(layout.PORT_PVPANIC, 1))),
        ),
        _generation_id(),
    ]
    devices += [
        aml.device(
            f"V{number:03X}",
            aml.name("_HID", aml.string("LNRO0005")),
            aml.name("_UID", aml.integer(number)),
            aml.name("_CRS", aml.resources(aml.memory(gpa, size), aml.interrupt(gsi))),
        )
        for number, (gpa, size, gsi) in enumerate(virtio_mmio)
    ]
    if pci is not None:
        devices += [_pci_bridge(pci), _reserved()]
    # §5.6.4.1.1 Queuing the Matching Control Method for Execution: "E" for edge.
    new_id = aml.method(f"_E{GPE_NEW_ID:02X}", aml.notify("_SB", "VGEN", 0x80))
    return table(b"DSDT", 2, s5 + aml.scope("_SB", *devices) + aml.scope("_GPE", new_id))


def _generation_id() -> bytes:
    """Where the VM generation id lies: the low and the high half of its gpa.

    Microsoft's specification asks for the first _CID and the _DDN; Linux knows both _CIDs.
    """
    gpa = aml.integer(layout.VM_GENERATION_ID)
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("PYKV0001")),
        aml.name("_CID", aml.package(aml.string("VM_Gen_Counter"), aml.string("VMGENCTR"))),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(gpa, aml.integer(0))),
    )


def _pci_bridge(devices: Sequence[tuple[int, int]]) -> bytes:
    """The PCI bus: where its devices' registers may lie, and where their INTA# pins lead.

    §6.2.13 _PRT (PCI Routing Table): (slot << 16 | any function, pin A, no link device, GSI).
    """
    zero = aml.integer(0)
    routes = [
        aml.package(aml.integer(slot << 16 | 0xFFFF), zero, zero, aml.integer(gsi))
        for slot, gsi in devices
    ]
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", zero),
        aml.name("_BBN", zero),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0),
                aml.io(layout.PORT_PCI_CONFIG, 8),
                aml.window(layout.PCI_MMIO, layout.PCI_MMIO_SIZE),
            ),
        ),
        aml.name("_PRT", aml.package(*routes)),
    )


def _reserved() -> bytes:
    """Memory that is taken: kernels want to find what MCFG names here (PCI Firmware Specification
    3.0, §4.1.2 MCFG Table Description)."""
    taken = aml.memory(layout.PCI_ECAM, layout.PCI_ECAM_SIZE)
    return aml.device(
        "RES0",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_CRS", aml.resources(taken)),
    )


def _mcfg() -> bytes:
    """Where PCI configuration space is in memory: segment 0, bus 0 (the same, §4.1.2)."""
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", layout.PCI_ECAM, 0, 0, 0))
