"""The lab: stock Linux kernels with their own RDS, in emulated guests, as peers for rdsx.

`Lab` is a network namespace with a bridge; `lab.start()` boots a guest on it; `guest.run()` runs a command there; `lab.host_process()`
runs one beside it, on the host's side of the bridge. `python -m tests.lab` is the same for a developer. README.md says how to use it.
"""

from __future__ import annotations

from .control import GuestDiedError, Result
from .guest import Guest, GuestProcess
from .host import HostProcess
from .kernel import DEFAULT_KERNEL, Kernel, KernelUnavailableError
from .lab import Lab, LabError

__all__ = [
    "DEFAULT_KERNEL",
    "Guest",
    "GuestDiedError",
    "GuestProcess",
    "HostProcess",
    "Kernel",
    "KernelUnavailableError",
    "Lab",
    "LabError",
    "Result",
]
