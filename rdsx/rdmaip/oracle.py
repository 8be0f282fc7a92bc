"""Settings of Oracle's kernel module as a configuration of ours. Takes its group string; addresses are left to be discovered, as it did."""

from __future__ import annotations

from rdsx.rdmaip.config import ConfigError, parse_config

__all__ = ["import_oracle"]


def import_oracle(groups: str, *, failback: bool = True, exclude: str = "169.254/16") -> str:
    """TOML for the values of `rdmaip_active_bonding_failover_groups`, `…_failback` and `rdmaip_ipv4_exclude_ips_list`.

    Args:
        groups: interface names, "," within a group and ";" between groups: `ib0,ib1;ib2,ib3`.
        failback: whether addresses go home.
        exclude: networks whose addresses are not managed, with "," between; short forms such as `169.254/16` are completed.

    Raises ConfigError for what cannot be a configuration.
    """
    lines = ["[rdmaip]", f'failback = "{"auto" if failback else "never"}"']
    networks = ", ".join(f'"{completed(network)}"' for network in exclude.split(",") if network.strip())
    for part in groups.split(";"):
        ports = [name.strip() for name in part.split(",") if name.strip()]
        if not ports:
            raise ConfigError((), f"{groups!r} has an empty group; write interface names as in 'ib0,ib1;ib2,ib3'")
        names = ", ".join(f'"{port}"' for port in ports)
        lines += ["", "[[group]]", f'name = "{"-".join(ports)}"', f"ports = [{names}]", 'address = "discover"', f"exclude = [{networks}]"]
    text = "\n".join(lines) + "\n"
    parse_config(text, f"the groups {groups!r}")
    return text


def completed(network: str) -> str:
    """`169.254/16` as `169.254.0.0/16`."""
    base, _, length = network.strip().partition("/")
    parts = base.split(".")
    return ".".join(parts + ["0"] * (4 - len(parts))) + "/" + (length or "32")
