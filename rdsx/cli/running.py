"""Runs a command's async function. Owns the way from an exception to one clear line; never prints a traceback for what a user can mend.

trio wraps what leaves a nursery in exception groups, also when it is one error that stopped everything: `run` takes that one out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar, TypeVarTuple, Unpack

import click
import trio

__all__ = ["CliError", "Interrupt", "explain_bind_error", "print_json", "run"]

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class CliError(click.ClickException):
    """Something that the user can mend: printed as `Error: text`, exit status 1."""


class Interrupt:
    """Ctrl-C (or SIGTERM) as a cancellation: the block `async with interrupt.ends_block()` ends early, and `signal_number` says why."""

    def __init__(self) -> None:
        self.signal_number = 0

    @contextlib.asynccontextmanager
    async def ends_block(self) -> AsyncIterator[None]:
        """Cancel the block at the first signal. Its clean-up runs; nothing is raised behind it."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._wait, signals, tasks.cancel_scope)
                yield
                tasks.cancel_scope.cancel()

    async def _wait(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            self.signal_number = number
            scope.cancel()

    @property
    def exit_status(self) -> int:
        return 128 + self.signal_number


def run(function: Callable[[Unpack[Arguments]], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """`trio.run`, with the errors that a user can mend raised as `CliError`."""
    try:
        try:
            return trio.run(function, *arguments)
        except BaseExceptionGroup as group:
            raise _first_leaf(group) from group
    except (BrokenPipeError, click.ClickException):
        raise
    except OSError as error:
        raise CliError(error.strerror or str(error)) from error


def explain_bind_error(error: OSError, address: str, port: int, remedy: str) -> OSError | CliError:
    """What to raise when a node cannot open at `address`: address, port and the way out. Other errors are given back as they are."""
    if error.errno == errno.EADDRINUSE:
        return CliError(f"TCP {_join(address, port)} is in use by another program; {remedy}")
    if error.errno == errno.EADDRNOTAVAIL:
        return CliError(f"{address} is not an address of this machine; name one that `ip address` lists")
    if error.errno == errno.EACCES:
        return CliError(f"TCP {_join(address, port)}: {os.strerror(errno.EACCES)}; ports below 1024 need privilege, {remedy}")
    return error


def print_json(**fields: object) -> None:
    """One JSON object on one line of standard output, flushed, for programs that read along."""
    click.echo(json.dumps(fields))


def _join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _first_leaf(error: BaseException) -> BaseException:
    """The error to show: the first that the user can mend, else a plain one, before Cancelled and the like."""
    leaves = list(_leaves(error))
    for kind in (click.ClickException, KeyboardInterrupt, Exception, BaseException):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    raise AssertionError("an exception group without an exception")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
