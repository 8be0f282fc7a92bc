"""What the lab needs of its host, and what of it is absent. Looks, changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from typing import Literal

__all__ = ["ENVIRONMENT", "absent", "has", "mode"]

# Programs of /sbin are found although an ordinary user's PATH does not name it.
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
ENVIRONMENT = os.environ | {"PATH": PATH, "LC_ALL": "C"}

# program: Debian package
RUNNING = {
    "qemu-system-x86_64": "qemu-system-x86",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "timeout": "coreutils",
}
PREPARING = {"busybox": "busybox-static", "modprobe": "kmod", "depmod": "kmod", "dpkg-deb": "dpkg", "apt-get": "apt", "zstd": "zstd"}


def absent(*, preparing: bool = False) -> list[str]:
    """What is missing to run guests, or to prepare a kernel for them: a line each, with the remedy."""
    programs = PREPARING if preparing else RUNNING
    missing = {package for program, package in programs.items() if not has(program)}
    lines = [f"package {package} is not installed: apt-get install {package}" for package in sorted(missing)]
    if not preparing and not missing:
        if mode() is None:
            lines.append("no network namespace can be made: be root, or allow user namespaces (unshare -Urn)")
        elif not can_open_tun():
            lines.append("/dev/net/tun cannot be opened: load the module tun, and let this user read and write the device")
    return lines


def has(program: str) -> bool:
    return shutil.which(program, path=ENVIRONMENT["PATH"]) is not None


@cache
def mode() -> Literal["root", "user"] | None:
    """How a network namespace with a bridge can be had here: as root, in a user namespace, or not at all."""
    wanted = os.environ.get("RDSX_LAB_MODE", "")
    if wanted in ("", "root") and works("unshare", "--net"):
        return "root"
    if wanted in ("", "user") and works("unshare", "--user", "--map-root-user", "--net"):
        return "user"
    return None


def works(*unshare: str) -> bool:
    command = [*unshare, "ip", "link", "add", "br0", "type", "bridge"]
    try:
        subprocess.run(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def can_open_tun() -> bool:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
