"""Numbers as users type them: counts with k, m, g; times with ms, us. Owns the parsers that click options name as their type."""

from __future__ import annotations

import re

import click

__all__ = ["parse_bytes", "parse_count", "parse_interval_s"]

MULTIPLIERS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
BINARY_MULTIPLIERS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6, "usec": 1e-6}
COUNT_PATTERN = re.compile(r"(\d{1,18})([kmg]?)", re.IGNORECASE | re.ASCII)
INTERVAL_PATTERN = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
LONGEST_INTERVAL_S = 86_400.0


def parse_count(text: str | int) -> int:
    """A positive whole number; k, m, g are powers of 1000. Raises click.BadParameter."""
    return _parse_whole(text, MULTIPLIERS, "count")


def parse_bytes(text: str | int) -> int:
    """A positive number of bytes; k, m, g are powers of 1024. Raises click.BadParameter."""
    return _parse_whole(text, BINARY_MULTIPLIERS, "size")


def parse_interval_s(text: str | float) -> float:
    """Seconds as a float, or a number with ms, msec, us or usec. Raises click.BadParameter."""
    match = INTERVAL_PATTERN.fullmatch(str(text).strip())
    unit_s = SECONDS.get(match[2].lower()) if match else None
    if match is None or unit_s is None:
        raise click.BadParameter(f"{text!r} is not an interval: give seconds, as 0.5, or a number with ms or us, as 500ms")
    interval_s = float(match[1]) * unit_s
    if not 0 < interval_s <= LONGEST_INTERVAL_S:
        raise click.BadParameter(f"{text!r} is out of range: give more than 0 and at most one day")
    return interval_s


def _parse_whole(text: str | int, multipliers: dict[str, int], noun: str) -> int:
    match = COUNT_PATTERN.fullmatch(str(text).strip())
    number = int(match[1]) * multipliers[match[2].lower()] if match else 0
    if number < 1:
        raise click.BadParameter(f"{text!r} is not a {noun}: give a whole number from 1, which may end in k, m or g")
    return number
