"""Settings for every test: hypothesis draws the same examples on every run, and nothing is written beside the tests.

`RDSX_HYPOTHESIS=explore pytest ...` draws new examples instead; a failure prints the line that reproduces it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("RDSX_HYPOTHESIS", "same")

COMMON = settings(deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", COMMON, derandomize=True)
settings.register_profile("explore", COMMON, derandomize=False)
settings.load_profile(PROFILE)


def pytest_report_header() -> str:
    drawn = "derived from each test" if PROFILE == "same" else "new on each run, printed on failure"
    return f"rdsx: hypothesis profile {PROFILE!r}, seeds {drawn}"
