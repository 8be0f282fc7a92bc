"""Control messages of sendmsg() and recvmsg(): typed values instead of structs packed by hand."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Literal

from typing_extensions import Buffer

from rdsx import constants as c
from rdsx.addresses import SockAddr, parse_host, parse_sockaddr

__all__ = ["pack_sockaddr", "unpack_sockaddr"]

BYTE_ORDER: Literal["little", "big"] = sys.byteorder
SO_TIMESTAMP = 29


def pack_sockaddr(address: SockAddr) -> bytes:
    """A struct sockaddr_in or sockaddr_in6, for RDS_CANCEL_SENT_TO."""
    host, port = parse_sockaddr(address)
    if host.is_ipv6:
        packed = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + host.ip.packed
        return packed + struct.pack("=I", host.scope)
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + host.ip.packed + bytes(8)


def unpack_sockaddr(packed: bytes) -> SockAddr:
    """The address in a struct sockaddr, read by its length alone, as the kernel does. EINVAL if shorter than 16 bytes."""
    if len(packed) < 16:
        raise OSError(errno.EINVAL, f"a sockaddr_in has 16 bytes, a sockaddr_in6 28, not {len(packed)}")
    (port,) = struct.unpack_from(">H", packed, 2)
    if len(packed) < 28:
        return socket.inet_ntop(socket.AF_INET, packed[4:8]), port
    (scope,) = struct.unpack_from("=I", packed, 24)
    return parse_host(socket.inet_ntop(socket.AF_INET6, packed[8:24]), scope).sockaddr(port)


def timestamp(stamp_s: float) -> tuple[int, int, bytes]:
    """The SO_TIMESTAMP control message: seconds and microseconds."""
    return socket.SOL_SOCKET, SO_TIMESTAMP, struct.pack("ll", int(stamp_s), int(stamp_s % 1 * 1e6))


def fit(control: list[tuple[int, int, bytes]], ancbufsize: int) -> tuple[list[tuple[int, int, bytes]], int]:
    """The control messages that fit `ancbufsize` bytes, and MSG_CTRUNC if any did not."""
    for index, (_, _, data) in enumerate(control):
        ancbufsize -= socket.CMSG_SPACE(len(data))
        if ancbufsize < 0:
            return control[:index], socket.MSG_CTRUNC
    return control, 0


RDMA_KINDS = {
    c.RDS_CMSG_RDMA_ARGS: 56,
    c.RDS_CMSG_RDMA_DEST: 8,
    c.RDS_CMSG_RDMA_MAP: 32,
    c.RDS_CMSG_ATOMIC_FADD: 72,
    c.RDS_CMSG_ATOMIC_CSWP: 72,
    c.RDS_CMSG_MASKED_ATOMIC_FADD: 72,
    c.RDS_CMSG_MASKED_ATOMIC_CSWP: 72,
}


def check_send(ancdata: Iterable[tuple[int, int, Buffer]]) -> None:
    """Refuse what this transport cannot do with the kernel's errnos. Levels other than SOL_RDS are ignored, as the kernel does."""
    for level, kind, data in ancdata:
        if level != c.SOL_RDS:
            continue
        if kind not in RDMA_KINDS or len(bytes(data)) < RDMA_KINDS[kind]:
            raise OSError(errno.EINVAL, f"control message {kind} with {len(bytes(data))} bytes is not one that RDS takes")
        raise OSError(errno.EOPNOTSUPP, f"control message {kind}: RDMA needs the verbs transport")
