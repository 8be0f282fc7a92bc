"""Benchmarks: they are run from a checkout and are not installed."""
