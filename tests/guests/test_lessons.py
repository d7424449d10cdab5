"""The course: pages keep their promises; exercises can be solved, and not by doing nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

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
