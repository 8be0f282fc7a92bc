"""Reads RDS_INFO pages through any AF_RDS socket. The records are in `wire.info`."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from rdsx.constants import SOL_RDS
from rdsx.wire.info import COUNTERS, PAGES, Info, InfoPage, MessageInfo, parse_page

__all__ = ["read_counters", "read_info", "read_messages"]

FIRST_GUESS = 4096
ABSENT = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)

# socket.getsockopt() takes no buffer above 1024 bytes and does not tell what the call returned, which is the size of one record.
libc = ctypes.CDLL(None, use_errno=True)
libc.getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)]


def read_page(sock: socket.socket, page: InfoPage) -> list[Any] | None:
    """The records of one page; None if this kernel does not have it."""
    length = ctypes.c_uint32(FIRST_GUESS)
    while True:
        buffer = ctypes.create_string_buffer(length.value)
        record_bytes = libc.getsockopt(sock.fileno(), SOL_RDS, page.number, buffer, ctypes.byref(length))
        if record_bytes >= 0:
            return list(parse_page(page, buffer.raw[: length.value], record_bytes)) if length.value else []
        code = ctypes.get_errno()
        if code in ABSENT:
            return None
        if code != errno.ENOSPC:
            raise OSError(code, f"{os.strerror(code)}: RDS_INFO page {page.number}")
        length.value += length.value // 4  # what is needed now; a little more may be needed when we ask again


def read_field(sock: socket.socket, name: str) -> list[Any]:
    """The records of one field of `Info`."""
    complete, only_ipv4 = PAGES[name]
    found = read_page(sock, complete)
    if found is None:
        return read_page(sock, only_ipv4) or []
    if name == "connections":  # the type of service is on the other page only
        return [one for one in found if ":" in one.local] + (read_page(sock, only_ipv4) or [])
    return found


def read_counters(sock: socket.socket) -> dict[str, int]:
    return dict(read_page(sock, COUNTERS) or ())


def read_info(sock: socket.socket) -> Info:
    return Info(counters=read_counters(sock), **{name: tuple(read_field(sock, name)) for name in PAGES})


def read_messages(sock: socket.socket, *names: str) -> Iterator[MessageInfo]:
    """The messages of some queues, one queue after another."""
    for name in names:
        yield from read_field(sock, name)
