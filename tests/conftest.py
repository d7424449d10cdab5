"""How hypothesis works here: without deadlines, and in CI with the same examples every time."""

from __future__ import annotations

import os

from hypothesis import settings

# A machine shared with others is slow at times, which no test is to find out.
settings.register_profile("local", deadline=None)
# A change is judged by what it changed; luck is for the developers' machines.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")
