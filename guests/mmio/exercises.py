"""The exercises of lesson 7."""

from pykvm.lessons.exercise import Exercise, demand, load


def wraps_and_counts(file):
    adder = load(file).Adder()
    adder.write(0, 4, 0xFFFF_FFFF)
    adder.write(4, 4, 2)
    total = adder.read(8, 4)
    demand(total == 1, f"0xffffffff + 2 is {total:#x}, and a register has 32 bits")
    for count in (3, 4):
        told = adder.read(12, 4)
        demand(told == count, f"after {count} accesses, offset 12 says {told}")


def bytes_too(file):
    adder = load(file).Adder()
    adder.write(0, 4, 0x1234_5678)
    adder.write(4, 4, 0)
    for offset, size, value in (8, 4, 0x1234_5678), (8, 1, 0x78), (9, 1, 0x56), (10, 2, 0x1234):
        got = adder.read(offset, size)
        demand(got == value, f"{size} bytes at offset {offset} are {got:#x}, not {value:#x}")


EXERCISES = (
    Exercise(
        "SUM wraps around at 32 bits, and offset 12 says how many accesses there were before.",
        "host.py",
        (
            (
                "        self.registers = {0: 0, 4: 0}\n",
                "        self.registers = {0: 0, 4: 0}\n        self.accesses = 0\n",
            ),
            (
                "        return self.registers.get(offset, sum(self.registers.values()))\n",
                "        self.accesses += 1\n"
                "        if offset == 12:\n"
                "            return self.accesses - 1\n"
                "        total = sum(self.registers.values()) & 0xFFFF_FFFF\n"
                "        return self.registers.get(offset, total)\n",
            ),
            (
                "        if offset in self.registers:\n",
                "        self.accesses += 1\n        if offset in self.registers:\n",
            ),
        ),
        wraps_and_counts,
    ),
    Exercise(
        "SUM can be read in parts: its bytes at offsets 8 to 11, lowest first.",
        "host.py",
        (
            (
                "        return self.registers.get(offset, sum(self.registers.values()))\n",
                "        if 8 <= offset < 12:\n"
                "            total = sum(self.registers.values())\n"
                "            return total >> 8 * (offset - 8) & (1 << 8 * size) - 1\n"
                "        return self.registers.get(offset, 0)\n",
            ),
        ),
        bytes_too,
    ),
)
