"""Addresses that move: what needs no privilege, and scenarios in network namespaces, which need root."""
