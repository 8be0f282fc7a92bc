"""A Debian kernel made ready to boot: unpacked, decompressed, with an initramfs whose only task is to mount the host's root.

Everything lies under the lab's folder (`build/lab`, or RDSX_LAB_DIR), a folder for each kernel series. Invariant: a folder with that
name is complete, because it is made under another name and renamed; a lock keeps two processes from making it at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import requirements
from .packages import PackageError, Source, host_source, suite_source

__all__ = ["DEFAULT_KERNEL", "Kernel", "KernelUnavailableError", "find", "lab_folder", "prepare"]

DEFAULT_KERNEL = "6.1"
SUITES = {"6.1": "bookworm", "6.12": "trixie", "7.2": "trixie-backports"}
FORMAT = 1  # of a prepared folder; a folder of another one is made anew

# What the guest needs before it sees the host's root, where all other modules are.
BOOT_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_net", "virtio_console")
XZ, ZSTD = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /lower /rw /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /m/list); do insmod /m/$m; done
o=trans=virtio,version=9p2000.L,msize=500000
mount -t 9p -o $o,ro,cache=loose root /lower
mount -t tmpfs rw /rw; mkdir /rw/u /rw/w
# nosuid: without root on the host its files belong to nobody, and a set-uid mount(8) would drop the guest's root rights
mount -t overlay -o nosuid,lowerdir=/lower,upperdir=/rw/u,workdir=/rw/w overlay /new
mount -t devtmpfs dev /new/dev; mount -t proc proc /new/proc; mount -t sysfs sys /new/sys
mkdir -p /new/dev/shm; mount -t tmpfs shm /new/dev/shm
mount -t tmpfs run /new/run; mkdir /new/run/lab
mount -t 9p -o $o,cache=none lab /new/run/lab
exec switch_root /new /bin/bash /run/lab/boot.sh
"""


class KernelUnavailableError(Exception):
    """The kernel is not prepared, or its package cannot be had. The text says which, and the remedy."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to boot."""

    series: str
    release: str
    folder: Path
    modules: Path

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs.cpio"


def lab_folder() -> Path:
    """Where the lab keeps what it downloads and makes."""
    given = os.environ.get("RDSX_LAB_DIR")
    return Path(given).absolute() if given else Path(__file__).parents[2].absolute() / "build" / "lab"


def find(series: str = DEFAULT_KERNEL) -> Kernel:
    """A kernel prepared earlier. KernelUnavailableError if there is none."""
    folder = lab_folder() / series
    try:
        facts = json.loads((folder / "kernel.json").read_text())
    except OSError:
        facts = {}
    if facts.get("format") != FORMAT:
        option = "" if series == DEFAULT_KERNEL else f" --kernel {series}"
        raise KernelUnavailableError(
            f"package linux-image (kernel {series}) is not prepared under {lab_folder()}: python -m tests.lab prepare{option}"
        )
    return Kernel(series, facts["release"], folder, folder / facts["modules"])


def prepare(series: str = DEFAULT_KERNEL) -> Kernel:
    """Download, unpack and make what is not there yet. Takes 10 to 20 s and 70 MB of network the first time."""
    with contextlib.suppress(KernelUnavailableError):
        return find(series)
    if missing := requirements.absent(preparing=True):
        raise KernelUnavailableError("; ".join(missing))
    folder = lab_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        with contextlib.suppress(KernelUnavailableError):
            return find(series)  # made by another process while this one waited
        scratch = Path(tempfile.mkdtemp(prefix=f".{series}-", dir=folder))
        try:
            facts = make(series, folder, scratch)
            (scratch / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n")
            if (folder / series).exists():
                shutil.rmtree(folder / series)
            scratch.chmod(0o755)
            scratch.rename(folder / series)
        except (PackageError, subprocess.CalledProcessError, lzma.LZMAError) as error:
            detail = (error.stderr or b"").decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
            raise KernelUnavailableError(f"kernel {series} cannot be prepared: {error} {detail}".strip()) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return find(series)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(series: str, folder: Path, scratch: Path) -> dict[str, object]:
    """Fill `scratch`; returns what kernel.json says."""
    for package in download(series, folder, scratch / "deb"):
        run("dpkg-deb", "-x", package, scratch / "root")
    shutil.rmtree(scratch / "deb")
    root = scratch / "root"
    base = root if (root / "lib" / "modules").is_dir() else root / "usr"  # usr/lib/modules from trixie on
    (modules,) = (base / "lib" / "modules").iterdir()
    run("depmod", "-b", base, modules.name)  # the package leaves modules.dep to its postinst
    images = [root / "boot" / f"vmlinuz-{modules.name}", modules / "vmlinuz"]
    (scratch / "vmlinux").write_bytes(decompress(next(image for image in images if image.exists()).read_bytes()))
    make_initramfs(scratch, base, modules.name)
    return {"format": FORMAT, "release": modules.name, "modules": str(modules.relative_to(scratch))}


def download(series: str, folder: Path, into: Path) -> list[Path]:
    """The kernel's packages: from the host's apt if it has that series, else from Debian's archive."""
    into.mkdir()
    failures = []
    for source in sources(series, folder):
        try:
            if source.name.startswith("Debian"):
                source.update()
            if packages := source.kernel_packages(series):
                return source.download(packages, into)
            failures.append(f"{source.name} has no linux-image-{series}.*-amd64")
        except PackageError as error:
            failures.append(f"{source.name}: {error}")
    raise PackageError(f"package linux-image-{series}.*-amd64 cannot be downloaded: {'; '.join(failures)}")


def sources(series: str, folder: Path) -> Iterator[Source]:
    yield host_source()
    if series in SUITES:
        yield suite_source(folder, SUITES[series])


def decompress(image: bytes) -> bytes:
    """The ELF file inside a bzImage. Booting that instead saves the guest 3 s of decompressing under emulation."""
    start = (image[0x1F1] + 1) * 512 + struct.unpack_from("<I", image, 0x248)[0]
    length = struct.unpack_from("<I", image, 0x24C)[0]
    body = image[start : start + length - 4]  # the last four bytes are the length of what comes out
    if body.startswith(XZ):
        return lzma.LZMADecompressor().decompress(image[start:])
    if body.startswith(ZSTD):
        return run("zstd", "-dc", input=body)
    raise PackageError(f"vmlinuz is packed in a way the lab does not know ({body[:6].hex()})")


def make_initramfs(scratch: Path, base: Path, release: str) -> None:
    tree = scratch / "initramfs"
    (tree / "bin").mkdir(parents=True)
    (tree / "m").mkdir()
    shutil.copy(shutil.which("busybox", path=requirements.ENVIRONMENT["PATH"]) or "busybox", tree / "bin" / "busybox")
    names: dict[str, None] = {}
    for module in BOOT_MODULES:
        for line in run("modprobe", "-d", base, "-S", release, "-D", module).decode().splitlines():
            verb, path, *_ = line.split()
            if verb == "insmod":
                name = Path(path).name
                data = Path(path).read_bytes()
                if name.endswith(".xz"):
                    name, data = name.removesuffix(".xz"), lzma.decompress(data)
                (tree / "m" / name).write_bytes(data)
                names[name] = None
    (tree / "m" / "list").write_text("\n".join(names) + "\n")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    files = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    (scratch / "initramfs.cpio").write_bytes(run("busybox", "cpio", "-o", "-H", "newc", input=files.encode(), cwd=tree))


def run(*command: str | Path, input: bytes = b"", cwd: Path | None = None) -> bytes:
    done = subprocess.run(command, input=input, cwd=cwd, env=requirements.ENVIRONMENT, capture_output=True, timeout=300, check=True)
    return done.stdout
