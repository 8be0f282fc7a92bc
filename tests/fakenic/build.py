"""Compiles `fake_nic.pyx` against the rdsx of this Python, by the checkout's setup.py. Owns build/fake_nic: a folder for each result.

Invariant: a folder's name says what it was made from, and it appears there whole, so that several runs of the tests can build at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

__all__ = ["SOURCE", "load"]

SOURCE = Path(__file__).resolve().with_name("fake_nic.pyx")
ROOT = SOURCE.parents[2]
BUILT = ROOT / "build" / "fake_nic"
FILE_NAME = "fake_nic" + sysconfig.get_config_var("EXT_SUFFIX")
LIMIT_S = 300.0


@cache
def load() -> ModuleType:
    """The compiled module. ImportError if rdsx has no rings here, or the headers of rdma-core are absent; RuntimeError if it does not
    compile."""
    if importlib.util.find_spec("rdsx._rings") is None:
        raise ImportError("rdsx was built without the headers of rdma-core")
    folder = BUILT / key()
    if not folder.exists():
        build(folder)
    spec = importlib.util.spec_from_file_location("fake_nic", folder / FILE_NAME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key() -> str:
    """Changes with everything that the result depends on."""
    digest = hashlib.sha256(f"{sys.version} {FILE_NAME} {os.environ.get('RDSX_SAFE_BUILD')}".encode())
    for source in (SOURCE, ROOT / "setup.py", *sorted((ROOT / "rdsx").glob("*.pxd"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def build(folder: Path) -> None:
    BUILT.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(dir=BUILT, prefix="making-")
    try:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", f"{scratch}/lib", "--build-temp", f"{scratch}/temp"]
        environment = os.environ | {"RDSX_FAKE_NIC": f"{scratch}/temp"}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        if run.returncode:
            raise RuntimeError(f"the made-up device cannot be built (status {run.returncode}):\n{(run.stdout + run.stderr)[-2000:]}")
        if not Path(scratch, "lib", FILE_NAME).exists():
            raise ImportError(run.stderr.strip())
        try:
            os.rename(f"{scratch}/lib", folder)
        except OSError:  # another run was faster
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch)
