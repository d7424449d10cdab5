"""For all tests: hypothesis asserts nothing about time, which busy machines have little of.

In CI it takes the same examples every time: a change is judged by what it changed, not by luck.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("untimed"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "untimed")
