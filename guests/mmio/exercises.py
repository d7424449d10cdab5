"""The exercise of lesson 7."""

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
)
