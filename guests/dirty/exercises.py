"""The exercise of lesson 11."""

from pykvm.lessons.exercise import Exercise, demand, load


def knows(file):
    module = load(file)
    demand(hasattr(module, "same"), "there is no function same(vm, saved)")
    answers = tuple(getattr(module, "answers", ()))
    demand(answers == (True, False), f"answers is {answers}, not (True, False)")


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
)
