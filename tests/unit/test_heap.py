"""What a node does about the heap of the C library: the pages of payloads that come and go stay."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import rdsx

PAYLOAD_BYTES = 65536
PAYLOADS = 28  # all together below the 2 MiB that stay, and above what importing things may have raised the limit to
PAGES = PAYLOADS * PAYLOAD_BYTES // os.sysconf("SC_PAGESIZE")
PROGRAM = f"""
import resource, trio, rdsx

async def main():
    async with rdsx.open_node("10.0.0.1", transport="loop"):
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                del [bytes({PAYLOAD_BYTES}) for _ in range({PAYLOADS})][:]
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(faults)

trio.run(main)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_pages_of_payloads_that_come_and_go_stay() -> None:
    """In a process of its own: in this one other tests have freed large blocks, which has the same effect."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "PYTHONMALLOC"))}
    environment["PYTHONPATH"] = str(Path(rdsx.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-Pc", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < PAGES  # else it would be ten times as many
