"""The made-up RDMA device under the rings. No wheel has it: it is compiled when something here first imports it.

ImportError where that cannot be, with the reason.
"""

from __future__ import annotations

from .build import load

__all__ = ["CompletionQueue", "FakeNic"]

CompletionQueue = load().CompletionQueue
FakeNic = load().FakeNic
