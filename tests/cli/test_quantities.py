"""Counts, sizes and intervals as users type them."""

from __future__ import annotations

import click
import pytest

from rdsx.cli.quantities import parse_bytes, parse_count, parse_interval_s


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("10", 10), ("2k", 2_000), ("3M", 3_000_000), ("1g", 1_000_000_000), (7, 7), (" 5 ", 5)]
)
def test_count(text: str | int, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "1x", "k", "1.5", "1 k", "0k", "١", "9" * 30])
def test_count_refuses_and_names_the_value(text: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parse_count(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("4k", 4_096), ("64m", 64 << 20), ("2G", 2 << 30)])
def test_bytes(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1.0), ("0.25", 0.25), (".5", 0.5), ("20ms", 0.02), ("20msec", 0.02), ("5us", 5e-6), ("5 usec", 5e-6), ("1.5s", 1.5)],
)
def test_interval(text: str, seconds: float) -> None:
    assert parse_interval_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1", "1m", "ms", "1e3", "nan", "inf", "0ms", "90000", "1,5"])
def test_interval_refuses_and_names_the_value(text: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parse_interval_s(text)
    assert repr(text) in caught.value.message
