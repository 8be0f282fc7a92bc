"""Micro benchmarks: one section of the hot path at a time, in time and in instructions. `python -m benchmarks.micro --help`."""
