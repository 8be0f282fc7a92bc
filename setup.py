"""Builds the extension modules; all other metadata lives in pyproject.toml.

Every ``rdsx/*.pyx`` becomes ``rdsx.<name>``. With Cython the C is generated afresh on each build, so no build is ever
stale; without it the ``.c`` files that the sdist ships are compiled as they are. Environment:

``RDSX_SAFE_BUILD=1``  bounds, None and initialisation checks and assertions on; its C goes to ``build/safe``.
``RDSX_ANNOTATE=1``    write Cython's annotated HTML beside the C.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

SAFE = os.environ.get("RDSX_SAFE_BUILD") == "1"
ANNOTATE = os.environ.get("RDSX_ANNOTATE") == "1"
# pip and build ask for metadata before they build: no need to generate C for that.
METADATA_ONLY = sys.argv[1:2] in (["egg_info"], ["dist_info"])

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


def make_extension(pyx: Path, suffix: str) -> Extension:
    return Extension(
        f"rdsx.{pyx.stem}",
        [str(pyx.with_suffix(suffix))],
        include_dirs=["rdsx"],
        define_macros=[] if SAFE else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
        undef_macros=["NDEBUG"] if SAFE else [],
        extra_compile_args=["-O1", "-g"] if SAFE else ["-O3"],
    )


def extensions() -> list[Extension]:
    sources = sorted(Path("rdsx").glob("*.pyx"))
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
        build_dir="build/safe" if SAFE else None,
        annotate=ANNOTATE,
        force=True,
    )
    return built


setup(ext_modules=extensions(), options={"build_ext": {"force": True}})
