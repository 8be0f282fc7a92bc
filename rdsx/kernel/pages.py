"""Reads RDS_INFO pages through any AF_RDS socket. The records are in `wire.info`."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from rdsx.constants import SOL_RDS
from rdsx.wire.info import PAGES, Info, InfoPage, MessageInfo, parse_page

__all__ = ["read_counters", "read_info", "read_messages"]

FIRST_GUESS = 4096
ABSENT = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)

# socket.getsockopt() takes no buffer above 1024 bytes and does not tell what the call returned, which is the size of one record.
libc = ctypes.CDLL(None, use_errno=True)
libc.getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)]


def read_page(sock: socket.socket, page: InfoPage) -> list[Any]:
    """The records of one page; none if this kernel does not have it."""
    length = ctypes.c_uint32(FIRST_GUESS)
    while True:
        buffer = ctypes.create_string_buffer(length.value)
        record_bytes = libc.getsockopt(sock.fileno(), SOL_RDS, page.number, buffer, ctypes.byref(length))
        if record_bytes >= 0:
            return list(parse_page(page, buffer.raw[: length.value], record_bytes)) if length.value else []
        code = ctypes.get_errno()
        if code in ABSENT:
            return []
        if code != errno.ENOSPC:
            raise OSError(code, f"{os.strerror(code)}: RDS_INFO page {page.number}")
        length.value += length.value // 4  # what is needed now; a little more may be needed when we ask again


def read_field(sock: socket.socket, name: str) -> Iterator[Any]:
    """The records of one field of `Info`: of the page for IPv4, and those of the other page that this one does not have."""
    first, *second = PAGES[name]
    yield from read_page(sock, first)
    for page in second:
        for record in read_page(sock, page):
            if ":" in local_host(record):
                yield record


def local_host(record: Any) -> str:
    """The local address of a record of any page but the counters."""
    found = record.bound if hasattr(record, "bound") else record.local
    return str(found if isinstance(found, str) else found[0])


def read_counters(sock: socket.socket) -> dict[str, int]:
    return dict(read_page(sock, PAGES["counters"][0]))


def read_info(sock: socket.socket) -> Info:
    """All pages."""
    tables = {field.name: tuple(read_field(sock, field.name)) for field in fields(Info) if field.name != "counters"}
    return Info(counters=read_counters(sock), **tables)


def read_messages(sock: socket.socket, *names: str, ipv6: bool) -> Iterator[MessageInfo]:
    """The messages of some queues, of one address family."""
    for name in names:
        yield from read_page(sock, PAGES[name][1 if ipv6 else 0])
