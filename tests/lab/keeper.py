"""Keeps a lab's network namespace alive, and leaves nothing of it behind. A script of its own, started inside the new namespace.

It waits for its standard input to end, which happens however the process that started it ends, SIGKILL included; then it kills every
process that is still in the namespace, removes the lab's folder, and goes, and bridge and taps go with the namespace.

usage: keeper.py FOLDER
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

ROUNDS = 250  # a killed process is gone within a moment; give up on one that hangs in the kernel
PAUSE_S = 0.02


def main() -> None:
    folder = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the input ends it
    print("ready", flush=True)
    while os.read(0, 4096):
        pass
    for _ in range(ROUNDS):
        left = inhabitants()
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def inhabitants() -> list[int]:
    """Processes of this network namespace other than this one. A dead one that nobody has waited for is in no namespace."""
    own = os.stat("/proc/self/ns/net").st_ino
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if os.stat(f"/proc/{name}/ns/net").st_ino == own:
                    found.append(int(name))
            except OSError:
                pass  # gone, or not ours
    return found


if __name__ == "__main__":
    main()
