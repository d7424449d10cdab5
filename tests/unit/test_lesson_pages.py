"""The pages of the course: how they are read, and that what they show is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from pykvm.lessons import LESSONS, Lesson
from pykvm.lessons.page import Block, host_side, matches, read

ROOT = Path(__file__).resolve().parents[2]
by_number = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: str(lesson.number))

PAGE = """\
# Title

Words.

## A step

```c title="guests/x.c"
int x;
```

```python
print(1)
```

```text
1
```

```text
not an output
```
"""


def test_a_page_is_its_blocks() -> None:
    assert read(PAGE) == [
        Block("text", "# Title\n\nWords.\n"),
        Block("heading", "A step"),
        Block("shown", "int x;\n", "c", "guests/x.c"),
        Block("python", "print(1)\n", "python"),
        Block("output", "1\n", "text"),
        Block("shown", "not an output\n", "text"),
    ]
    assert host_side(PAGE) == "print(1)\n"


@pytest.mark.parametrize(
    ("printed", "promised", "same"),
    [
        ("a\n", "a\n", True),
        ("a \n", "a\n", True),
        ("b\n", "a\n", False),
        ("a 12.3 µs\n", "a … µs\n", True),
        ("a 1\n2 µs\n", "a … µs\n", False),
        ("a\nb\n", "a\n", False),
        ("(a)\n", "(…)\n", True),
    ],
)
def test_an_ellipsis_stands_for_anything_on_a_line(printed: str, promised: str, same: bool) -> None:
    assert matches(printed, promised) is same


@by_number
def test_the_host_side_is_the_python_of_the_page(lesson: Lesson) -> None:
    message = f"pykvm lesson {lesson.number} --code > guests/{lesson.folder}/host.py"
    assert (lesson.path / "host.py").read_text() == host_side(lesson.text), message


@by_number
def test_what_a_page_shows_of_a_file_is_in_it(lesson: Lesson) -> None:
    for block in read(lesson.text):
        if block.title:
            assert block.text in (ROOT / block.title).read_text(), block.title


@by_number
def test_a_page_is_called_as_the_lesson_is(lesson: Lesson) -> None:
    title = lesson.text.splitlines()[0].partition(": ")[2]
    assert title.lower() == lesson.title.lower()
    assert f"[{lesson.title}]({lesson.page})" in (ROOT / "docs/lessons/index.md").read_text()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_links_and_pictures_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).is_file(), target


def test_pictures_are_as_the_code_draws_them() -> None:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    drawn = {name: draw().svg() for name, draw in pictures.PICTURES.items()}
    assert drawn == {path.name: path.read_text() for path in pictures.FOLDER.glob("*.svg")}
