"""What this process may do to the network, read from /proc; and how to give it what it may not. Changes nothing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NEEDED", "explain_missing", "missing_capabilities"]

# Numbers: include/uapi/linux/capability.h
NEEDED = {
    "CAP_NET_ADMIN": (12, "to move addresses and routes, and to set network settings"),
    "CAP_NET_RAW": (13, "to announce addresses to peers"),
}


def missing_capabilities(root: Path = Path("/")) -> tuple[str, ...]:
    """Those of `NEEDED` that this process has not in its effective set."""
    held = 0
    for line in (root / "proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
    return tuple(name for name, (number, _) in NEEDED.items() if not held >> number & 1)


def explain_missing(names: tuple[str, ...]) -> str:
    """What is missing, what for, and what to do about it, in one line."""
    reasons = "; ".join(f"{name}, {NEEDED[name][1]}" for name in names)
    given = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in NEEDED)
    return (
        f"this process lacks {reasons}. Run it as root, or give an ordinary user just these: AmbientCapabilities={' '.join(NEEDED)} in a "
        f"systemd unit, `setpriv --ambient-caps {given} --inh-caps {given} …` in a shell, `--cap-add` with their names in a container"
    )
