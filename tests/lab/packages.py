"""Kernel packages, from Debian's archive: found, downloaded and unpacked, never installed.

What the host's own apt offers is taken from there; other kernels come through an apt of the lab's own, with its lists and its
settings under the lab's folder, so that the host's apt never sees them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["PackageError", "Source", "host_source", "suite_source"]

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
TIMEOUT_S = 600


class PackageError(Exception):
    """A package cannot be had. The text says which, and what apt said."""


class Source:
    """One apt: the host's, or one of the lab's own."""

    def __init__(self, options: tuple[str, ...], name: str) -> None:
        self._options = options
        self.name = name

    def update(self) -> None:
        run("apt-get", *self._options, "update")

    def kernel_packages(self, series: str) -> list[str]:
        """The packages that make up the newest kernel of a series such as "6.1"; empty if there is none."""
        releases = []
        for package in self._names(f"linux-image-{series}."):
            # 6.1.0-56-amd64 in bookworm, 6.12.107+deb13-amd64 since; no -rt, no -cloud, no -unsigned
            match = re.fullmatch(r"linux-image-((\d+)\.(\d+)\.(\d+)(?:-(\d+)|\+deb\d+)-amd64)", package)
            if match:
                releases.append(([int(number or 0) for number in match.groups()[1:]], match[1]))
        if not releases:
            return []
        release = max(releases)[1]
        if f"linux-binary-{release}" in self._names("linux-binary-"):  # split in three since 7.0
            return [f"linux-{part}-{release}" for part in ("base", "binary", "modules")]
        return [f"linux-image-{release}"]

    def download(self, packages: list[str], folder: Path) -> list[Path]:
        """Fetch .deb files into an empty folder."""
        run("apt-get", *self._options, "-o", "APT::Sandbox::User=", "download", *packages, cwd=folder)
        return sorted(folder.glob("*.deb"))

    def _names(self, prefix: str) -> list[str]:
        return run("apt-cache", *self._options, "pkgnames", prefix).split()


def host_source() -> Source:
    return Source((), "the host's apt")


def suite_source(folder: Path, suite: str) -> Source:
    """An apt of the lab's own, for one Debian suite, below `folder`. Call update() before use."""
    if not Path(KEYRING).exists():
        raise PackageError(f"{KEYRING} is absent: install debian-archive-keyring")
    root = folder / f"apt-{suite}"
    for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d",
                 "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg"):  # fmt: skip
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "etc/apt/sources.list").write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror()} {suite} main\n")
    options = (f"Dir={root}", f"Dir::State::status={root}/var/lib/dpkg/status", "APT::Sandbox::User=", "Acquire::Languages=none")
    return Source(tuple(part for option in options for part in ("-o", option)), f"Debian {suite}")


def mirror() -> str:
    """The archive that the host's own apt uses, if it is a Debian host."""
    try:
        addresses = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    except PackageError:
        addresses = []
    return next((address.rstrip("/") for address in addresses if address.rstrip("/").endswith("/debian")), DEFAULT_MIRROR)


def run(*command: str, cwd: Path | None = None) -> str:
    """A command's output. PackageError with what it said if it fails or is absent."""
    if shutil.which(command[0]) is None:
        raise PackageError(f"{command[0]} is absent: the lab takes its kernels from Debian packages")
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        raise PackageError(f"{' '.join(command)}: no end after {TIMEOUT_S} s") from None
    if done.returncode:
        raise PackageError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout
