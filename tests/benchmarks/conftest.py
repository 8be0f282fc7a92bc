"""The benchmarks are not installed: they come from the checkout, which is searched last, so that `rdsx` stays the installed one."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
