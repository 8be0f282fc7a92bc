"""The `rdsx` command. Owns the entry point and the advice for an installation without the `cli` extra; the commands are in `group`.

Nothing here or below imports a private name of rdsx: what the command line can do, any program can.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

MISSING = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]

if MISSING:

    def main() -> None:
        """Say what to install, and exit with status 1."""
        sys.exit(f"rdsx: the command line needs {' and '.join(MISSING)}. Run: python -m pip install 'rdsx[cli]'")

else:
    from rdsx.cli.group import main
