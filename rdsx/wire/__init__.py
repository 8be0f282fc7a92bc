"""Bytes on the wire that are not per-message work: what probes and hellos carry in the extension headers. Pure functions."""
