"""Builds the extension modules; all other metadata lives in pyproject.toml.

Every ``rdsx/*.pyx`` becomes ``rdsx.<name>``. With Cython the C is generated afresh on each build, so no build is ever
stale; without it the ``.c`` files that the sdist ships are compiled as they are. Environment:

``RDSX_SAFE_BUILD=1``  bounds, None and initialisation checks and assertions on; its C goes to ``build/safe``.
``RDSX_ANNOTATE=1``    write Cython's annotated HTML beside the C.
``RDSX_VERBS=0``       leave out what needs the headers of rdma-core; ``1``: fail without them. Unset: as they are there or not.
``RDSX_FAKE_NIC=DIR``  build the made-up device of the tests, with its C in that folder, and nothing else. ``tests/fakenic`` does so; no
                       wheel and no checkout has it among the modules of rdsx.

What needs those headers links none of rdma-core's libraries: a wheel that has it works where they are absent, without RDMA.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SAFE = os.environ.get("RDSX_SAFE_BUILD") == "1"
ANNOTATE = os.environ.get("RDSX_ANNOTATE") == "1"
FAKE_NIC = os.environ.get("RDSX_FAKE_NIC", "")
# pip and build ask for metadata before they build: no need to generate C for that.
METADATA_ONLY = sys.argv[1:2] in (["egg_info"], ["dist_info"])

VERBS = os.environ.get("RDSX_VERBS", "")
VERBS_MODULES = {"rdsx._bridge", "rdsx._rings", "fake_nic"}
VERBS_HEADERS = ("infiniband/verbs.h", "rdma/rdma_cma.h")
VERBS_PACKAGES = "Debian and Ubuntu: libibverbs-dev and librdmacm-dev; Fedora, RHEL and SUSE: rdma-core-devel"

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "embedsignature": True,
    "cdivision": True,
    "wraparound": False,
    "boundscheck": SAFE,
    "initializedcheck": SAFE,
    "nonecheck": SAFE,
}


class BuildExt(build_ext):
    """Builds what the headers of this machine allow."""

    def build_extensions(self) -> None:
        if any(extension.name in VERBS_MODULES for extension in self.extensions) and not self._builds_verbs():
            self.extensions = [extension for extension in self.extensions if extension.name not in VERBS_MODULES]
        super().build_extensions()

    def _builds_verbs(self) -> bool:
        if VERBS == "0":
            return False
        if self._has_headers():
            return True
        absent = f"{' and '.join(VERBS_HEADERS)} of rdma-core not found ({VERBS_PACKAGES})"
        if VERBS == "1":
            raise SystemExit(f"rdsx: RDSX_VERBS=1, but {absent}")
        print(f"rdsx: built without verbs: {absent}", file=sys.stderr)
        return False

    def _has_headers(self) -> bool:
        """Whether the compiler finds them, with the flags that this build has."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "headers.c"
            source.write_text("".join(f"#include <{header}>\n" for header in VERBS_HEADERS))
            try:
                self.compiler.compile([str(source)], output_dir=folder)
            except CompileError:
                return False
        return True


def make_extension(pyx: Path, suffix: str) -> Extension:
    name = pyx.stem if FAKE_NIC else f"rdsx.{pyx.stem}"
    return Extension(
        name,
        [str(pyx.with_suffix(suffix))],
        include_dirs=["rdsx"],
        libraries=["dl"] if name in VERBS_MODULES else [],  # part of libc since glibc 2.34
        define_macros=[] if SAFE else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
        undef_macros=["NDEBUG"] if SAFE else [],
        extra_compile_args=["-O1", "-g"] if SAFE else ["-O3"],
    )


def extensions() -> list[Extension]:
    sources = [Path("tests/fakenic/fake_nic.pyx")] if FAKE_NIC else sorted(Path("rdsx").glob("*.pyx"))
    if METADATA_ONLY or not sources:
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        missing = [str(c) for pyx in sources if not (c := pyx.with_suffix(".c")).exists()]
        if missing or SAFE or ANNOTATE:
            reason = f"{', '.join(missing)} not found" if missing else "RDSX_SAFE_BUILD and RDSX_ANNOTATE generate C"
            raise SystemExit(f"rdsx: this build needs Cython ({reason}). Run: python -m pip install 'Cython>=3.1'") from None
        return [make_extension(pyx, ".c") for pyx in sources]
    built: list[Extension] = cythonize(
        [make_extension(pyx, ".pyx") for pyx in sources],
        compiler_directives=DIRECTIVES,
        build_dir=FAKE_NIC or ("build/safe" if SAFE else None),
        annotate=ANNOTATE,
        force=True,
    )
    return built


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt}, options={"build_ext": {"force": True}})
