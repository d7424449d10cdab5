"""The course: pages keep their promises; exercises can be solved, and not by doing nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykvm.cli import main
from pykvm.lessons import LESSONS, Lesson
from pykvm.lessons.exercise import Exercise, NotSolvedError, exercises
from pykvm.lessons.play import play

by_number = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: str(lesson.number))
each_exercise = pytest.mark.parametrize(
    ("lesson", "exercise"),
    [(lesson, exercise) for lesson in LESSONS for exercise in exercises(lesson)],
    ids=[f"{each.number}-{n + 1}" for each in LESSONS for n in range(len(exercises(each)))],
)


@by_number
def test_a_page_prints_what_it_promises(lesson: Lesson) -> None:
    play(lesson, show=lambda block: None)


def test_a_lesson_on_the_terminal_names_its_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lesson", "2", "--all"]) == 0
    said = capsys.readouterr().out
    place = re.search(r"\[picture: A byte's way .*\n file://(\S+)\]", said)
    assert place, said
    assert Path(place[1]).is_file()
    assert "pykvm lesson 3" in said


@pytest.mark.parametrize("option", ["--begin", "--check"])
def test_an_exercise_is_done_in_a_file_of_its_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    assert main(["lesson", "2", option, str(tmp_path / "my.txt")]) == 125
    assert f"{option}: {tmp_path}/my.txt: its name must end in .S" in capsys.readouterr().err


@each_exercise
def test_the_solution_solves_the_exercise(
    lesson: Lesson, exercise: Exercise, tmp_path: Path
) -> None:
    solution = tmp_path / exercise.start
    solution.write_text(exercise.solved(lesson.path))
    exercise.check(solution)


@each_exercise
def test_what_the_learner_begins_with_is_no_solution(lesson: Lesson, exercise: Exercise) -> None:
    with pytest.raises(NotSolvedError):
        exercise.check(lesson.path / exercise.start)
