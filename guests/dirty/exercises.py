"""The exercises of lesson 11."""

from pykvm.lessons.exercise import Exercise, demand, load


def knows(file):
    module = load(file)
    demand(hasattr(module, "same"), "there is no function same(vm, saved)")
    answers = tuple(getattr(module, "answers", ()))
    demand(answers == (True, False), f"answers is {answers}, not (True, False)")


def has_a_twin(file):
    numbers = getattr(load(file), "numbers", None)
    demand(numbers == [7, 8, 9], f"numbers is {numbers}, not [7, 8, 9]")


EXERCISES = (
    Exercise(
        "same(vm, saved) tells from the dirty log whether memory is as it was saved.",
        "host.py",
        (
            (
                "cpu.set_regs(saved[0])\n",
                "\n\ndef same(vm, saved):\n"
                "    for page in {*dirty_pages(), *changed}:\n"
                "        at = page * PAGE\n"
                "        if vm.memory.read(at, PAGE) != saved[2][at : at + PAGE]:\n"
                "            return False\n"
                "    return True\n\n\n"
                "answers = [same(vm, saved)]\n"
                "cpu.set_regs(saved[0])\n",
            ),
            (
                "\nrun_until(9)\nvm.close()\n",
                "\nrun_until(9)\nanswers.append(same(vm, saved))\nvm.close()\n",
            ),
        ),
        knows,
    ),
    Exercise(
        "A second machine goes on from where the first was saved.",
        "host.py",
        (
            (
                "\nrun_until(9)\nvm.close()\n",
                "\nrun_until(9)\nvm.close()\n\n"
                'twin = Machine(MachineConfig(kernel=path("dirty"), memory=16 << 20))\n'
                "twin.memory.write(0, saved[2])\n"
                "twin.vcpus[0].set_regs(saved[0])\n"
                "twin.vcpus[0].set_sregs(saved[1])\n"
                "numbers = []\n\n\n"
                "@twin.pio(0x510, size=4)\n"
                "def heard(offset, size, value):\n"
                "    numbers.append(value)\n"
                "    if value == 9:\n"
                "        twin.stop()\n\n\n"
                "twin.run(timeout=10)\n"
                "twin.close()\n",
            ),
        ),
        has_a_twin,
    ),
)
