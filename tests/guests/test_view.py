"""The Python view: stepping, looking and changing, on a machine that stands still."""

from __future__ import annotations

import pytest

from pykvm import Machine, MachineConfig, guest_programs, layout
from pykvm.boot.entry import CpuMode
from pykvm.outcome import Outcome, Reason

# mov ecx, 5; L: inc dword [0x180000]; dec ecx; jnz L; mov dx, 0x5f8; mov al, 7; out dx, al
COUNT = "b9 05 00 00 00  ff 04 25 00 00 18 00  ff c9 75 f5  66 ba f8 05 b0 07 ee eb fe"
CODE, LOOP, COUNTER = 0x10_0000, 0x10_0005, 0x18_0000


def machine(**options: object) -> Machine:
    config = MachineConfig(kernel=bytes.fromhex(COUNT), memory=2 << 20, mode=CpuMode.LONG)
    return Machine(config._replace(**options))


def test_a_step_is_one_instruction_and_many_are_many() -> None:
    with machine(cpus=2) as vm:
        assert getattr(vm.step(), "address", None) == LOOP
        assert vm.vcpus[0].regs.rip == LOOP
        vm.step(7)
        assert (vm.vcpus[0].regs.rip, vm.vcpus[0].regs.rcx) == (LOOP + 7, 3)
        assert vm.run(timeout=20).code == 7


def test_steps_over_hlt_and_through_a_handler_do_no_harm() -> None:
    config = MachineConfig(kernel=guest_programs.path("timer"), cmdline="ticks=3")
    with Machine(config) as vm:
        vm.run_until(lambda vm: vm.disassemble(n=1)[0].text == "hlt", timeout=20)
        for _ in range(5):  # hlt; the handler, as far as it counts
            vm.step()
        assert vm.memory.read(vm.symbols["ticks"], 1) == b"\1"
        vm.step(50)  # more HLTs
        outcome = vm.run(timeout=20)
        assert (outcome.reason, outcome.code) == (Reason.EXIT, 0)
        assert outcome.console.count(b"ok: 3 ticks") == 2


def test_run_until_an_address_stops_there_every_time() -> None:
    with machine() as vm:
        for count in range(5):
            assert getattr(vm.run_until(LOOP, timeout=20), "address", None) == LOOP
            assert vm.memory.read(COUNTER, 1)[0] == count
        end = vm.run_until(LOOP, timeout=20)
        assert isinstance(end, Outcome)
        assert (end.reason, end.code) == (Reason.EXIT, 7)


def test_run_until_a_condition_holds() -> None:
    with machine() as vm:
        vm.run_until(lambda vm: vm.vcpus[0].regs.rcx == 2, timeout=20)
        assert vm.vcpus[0].regs.rip == LOOP + 9
        assert vm.memory.read(COUNTER, 1)[0] == 3


def test_run_until_a_symbol_and_show_what_is_there() -> None:
    config = MachineConfig(kernel=guest_programs.path("hello-elf64"), memory=16 << 20)
    with Machine(config) as vm:
        assert getattr(vm.run_until("main", timeout=20), "address", None) == vm.symbols["main"]
        assert vm.symbols.find(vm.symbols["main"] + 2) == "main+0x2"
        listing = vm.disassemble(n=3)
        assert len(listing) == 3
        assert "<main>" in repr(listing)
        assert "push" in repr(listing)
        assert "<table>" in listing._repr_html_()
        with pytest.raises(KeyError):
            vm.run_until("no such symbol")


def test_the_memory_map_shows_what_the_boot_and_the_user_put_there() -> None:
    config = MachineConfig(
        kernel=guest_programs.path("hello-elf64"),
        memory=(3 << 30) + (64 << 20),
        initrd=[guest_programs.path("hello-elf64")],
        rng=True,
    )
    with Machine(config) as vm:
        vm.mmio(0xD800_0000, 0x2000)(lambda offset, size, value: 0)
        found = vm.memory.map()
        at = {block.what: block for block in found}
        assert at["the ACPI tables"].gpa == layout.ACPI_TABLES
        window = at["pci window"]
        assert (window.gpa, window.size) == (layout.PCI_MMIO, layout.PCI_MMIO_SIZE)
        assert at["the initrd"].kind == "initrd"
        assert found[-1][:3] == (4 << 30, (4 << 30) + (64 << 20), "free memory")
        kernel = next(block for block in found if block.gpa == 0x10_0000)
        assert kernel.kind == "kernel"
        assert any(block.gpa == 0xD800_0000 and block.size == 0x2000 for block in found)
        assert found._repr_svg_().startswith("<svg")
        with vm.fork() as fork:
            assert "the initrd" in str(fork.memory.map())


def test_registers_are_named_shown_and_set() -> None:
    with machine() as vm:
        regs = vm.vcpus[0].regs
        regs.rip = LOOP + 11
        assert f"rip {LOOP + 11:016x}" in repr(regs)
        assert "cr3" in dir(regs)
        assert "<th>rip</th>" in regs._repr_html_()
        assert " efer [LME LMA]" in repr(regs)
        with pytest.raises(AttributeError, match="nosuch"):
            regs.nosuch = 1
        with pytest.raises(ValueError, match="cs has 16 bits: 0x10000 does not fit"):
            regs.cs = 0x10000
        assert vm.run(timeout=20).code == 7
        assert vm.memory.read(COUNTER, 1) == b"\0"


def test_a_machine_says_what_it_is_and_where_it_stands() -> None:
    with machine(cpus=2) as vm:
        assert repr(vm).startswith("<Machine 25 bytes, 2 vCPUs, 2 MiB: vCPU 0: at 0x100000, 64-bit")
        seen = []
        vm.pio(0x5F8)(lambda offset, size, value: seen.append(repr(vm)) or vm.stop())
        vm.run(timeout=20)
        assert seen == ["<Machine 25 bytes, 2 vCPUs, 2 MiB: running>"]
    assert repr(vm) == "<Machine 25 bytes, 2 vCPUs, 2 MiB: closed>"


def test_a_walk_agrees_with_kvm() -> None:
    with machine() as vm:
        found = vm.memory.walk(0x12_3456)
        assert found.gpa == vm.vcpus[0].translate(0x12_3456) == 0x12_3456
        assert "large page" in repr(found)
        assert vm.memory.walk(1 << 40).gpa is None


def test_a_device_is_replaced_between_steps() -> None:
    with machine() as vm:
        written: list[int | None] = []
        vm.run_until(LOOP, timeout=20)
        vm.pio(0x5F8)(lambda offset, size, value: written.append(value))
        vm.run_until(lambda vm: bool(written), timeout=20)
        assert written == [7]
