"""AF_RDS from a guest's command line: send, receive, ping and echo over the kernel's own RDS, with the results as JSON lines.

Standard library only; runs under any Python from 3.9 on, with -I -S. Blocking sockets: what blocks here blocks in the kernel, which is
what is to be seen. The last line printed is the result; `{"event": "ready"}` comes first where another side waits for it.

    guest_rds.py recv 10.77.0.2:4000 --count 10
    guest_rds.py send 10.77.0.2:4001 10.77.0.1:4000 --count 10 --seed 7 --sizes 0-65536
    guest_rds.py ping 10.77.0.2 10.77.0.1 --count 5
    guest_rds.py echo 10.77.0.2:4000 --count 10
    guest_rds.py info
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import socket
import struct
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # -I leaves it out

from traffic import digest, messages

AF_RDS = 21
SOL_RDS = 276
SO_RDS_TRANSPORT, RDS_TRANS_TCP = 8, 2
RDS_INFO_COUNTERS, RDS_INFO_CONNECTIONS, RDS_INFO_SEND_MESSAGES, RDS_INFO_RETRANS_MESSAGES = 10000, 10001, 10003, 10004
INFO_MESSAGE = struct.Struct("=QI4s4sHHBB")  # ports are big-endian inside
INFO_CONNECTION = struct.Struct("=QQ4s4s16sBB")
INFO_COUNTER = struct.Struct("=32sQ")
MAX_MESSAGE = 1 << 20
MAX_BUFFER = 8 << 20
MAX_INFO = 1 << 20
DRAIN_POLL_S = 0.01


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--timeout", type=float, default=30.0, help="seconds that one call may block")
    common.add_argument("--sndbuf", type=int, default=0)
    common.add_argument("--rcvbuf", type=int, default=0)
    receive = verbs.add_parser("recv", parents=[common])
    receive.add_argument("local", type=address)
    receive.add_argument("--count", type=int, default=1)
    receive.add_argument("--linger", type=float, default=0.0, help="then wait this long for what should not come")
    receive.add_argument("--pause", type=float, default=0.0, help="before the first message is read")
    send = verbs.add_parser("send", parents=[common])
    send.add_argument("local", type=address)
    send.add_argument("remote", type=address)
    send.add_argument("--count", type=int, default=1)
    send.add_argument("--seed", type=int, default=0)
    send.add_argument("--sizes", default="64-64", help="bytes, LOW-HIGH")
    send.add_argument("--interval", type=float, default=0.0)
    send.add_argument("--nonblock", action="store_true", help="count EAGAIN and ENOBUFS instead of blocking")
    send.add_argument("--drain", type=float, default=20.0, help="wait at most this long for the peer's TCP to take all")
    ping = verbs.add_parser("ping", parents=[common])
    ping.add_argument("local", type=address)
    ping.add_argument("remote", type=address)
    ping.add_argument("--count", type=int, default=1)
    ping.add_argument("--interval", type=float, default=0.0)
    echo = verbs.add_parser("echo", parents=[common])
    echo.add_argument("local", type=address)
    echo.add_argument("--count", type=int, default=1)
    verbs.add_parser("info", parents=[common])
    arguments = parser.parse_args()
    VERBS[arguments.verb](arguments)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port or 0)


def open_socket(arguments: argparse.Namespace) -> socket.socket:
    sock = rds_socket(arguments.sndbuf, arguments.rcvbuf)
    wait = struct.pack("ll", int(arguments.timeout), int(arguments.timeout % 1 * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, wait)
    if arguments.verb != "info":
        sock.bind(arguments.local)
    return sock


def rds_socket(send_buffer: int = 0, receive_buffer: int = 0) -> socket.socket:
    """An unbound socket over TCP, with large buffers unless told otherwise."""
    sock = socket.socket(AF_RDS, socket.SOCK_SEQPACKET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer or MAX_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer or MAX_BUFFER)
    sock.setsockopt(SOL_RDS, SO_RDS_TRANSPORT, RDS_TRANS_TCP)
    return sock


def receive(arguments: argparse.Namespace) -> None:
    with open_socket(arguments) as sock:
        report(event="ready")
        time.sleep(arguments.pause)
        found: list[str] = []
        senders: dict[str, int] = {}
        error = None
        try:
            while len(found) < arguments.count:
                take(sock, found, senders)
        except OSError as failure:
            error = name_of(failure)
        deadline_s = time.monotonic() + arguments.linger
        while (left_s := deadline_s - time.monotonic()) > 0:
            sock.settimeout(left_s)
            try:
                take(sock, found, senders)
            except OSError:
                break
        report(received=len(found), digests=found, senders=senders, error=error)


def take(sock: socket.socket, found: list[str], senders: dict[str, int]) -> None:
    data, sender = sock.recvfrom(MAX_MESSAGE)
    found.append(digest(data))
    name = "{}:{}".format(*sender[:2])
    senders[name] = senders.get(name, 0) + 1


def send(arguments: argparse.Namespace) -> None:
    low, _, high = arguments.sizes.partition("-")
    with open_socket(arguments) as sock:
        began_s, sent, error = time.monotonic(), 0, None
        refused: dict[str, int] = {}
        flags = socket.MSG_DONTWAIT if arguments.nonblock else 0
        try:
            for message in messages(arguments.seed, arguments.count, int(low), int(high or low)):
                while not send_one(sock, message, flags, arguments.remote, refused):
                    time.sleep(DRAIN_POLL_S)
                sent += 1
                time.sleep(arguments.interval)
        except OSError as failure:
            error = name_of(failure)
        sent_s = time.monotonic() - began_s
        drained = drain(sock, arguments.drain)  # closing the socket drops what is queued
        drained_s = time.monotonic() - began_s
        report(sent=sent, refused=refused, error=error, sent_s=round(sent_s, 3), drained=drained, drained_s=round(drained_s, 3))


def send_one(sock: socket.socket, message: bytes, flags: int, remote: tuple[str, int], refused: dict[str, int]) -> bool:
    try:
        sock.sendto(message, flags, remote)
    except OSError as failure:
        if not flags or failure.errno not in (errno.EAGAIN, errno.ENOBUFS):
            raise
        name = name_of(failure)
        refused[name] = refused.get(name, 0) + 1
        return False
    return True


def drain(sock: socket.socket, limit_s: float) -> bool:
    """Wait until nothing of this socket is queued or unacknowledged."""
    port = sock.getsockname()[1]
    deadline_s = time.monotonic() + limit_s
    while unacknowledged(sock, port):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(DRAIN_POLL_S)
    return True


def unacknowledged(sock: socket.socket, port: int) -> int:
    """How many messages from a port the peer's TCP has not acknowledged. `sock` is any RDS socket.

    The send queue is read twice: a lost connection moves messages back to it, between two looks.
    """
    pages = (RDS_INFO_SEND_MESSAGES, RDS_INFO_RETRANS_MESSAGES, RDS_INFO_SEND_MESSAGES)
    return len({record for page in pages for record in info_page(sock, page, INFO_MESSAGE) if socket.ntohs(record[4]) == port})


def info_page(sock: socket.socket, page: int, record: struct.Struct) -> list[tuple[Any, ...]]:
    """The records of an RDS_INFO page. Python's own getsockopt() takes no buffer above 1024 bytes."""
    buffer, length = ctypes.create_string_buffer(MAX_INFO), ctypes.c_uint32(MAX_INFO)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), SOL_RDS, page, buffer, ctypes.byref(length)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return list(record.iter_unpack(buffer.raw[: length.value]))


def ping(arguments: argparse.Namespace) -> None:
    with open_socket(arguments) as sock:
        times_us, error = [], None
        try:
            for _ in range(arguments.count):
                began_s = time.monotonic()
                sock.sendto(b"", (arguments.remote[0], 0))
                data, sender = sock.recvfrom(MAX_MESSAGE)
                times_us.append(round((time.monotonic() - began_s) * 1e6))
                assert (data, sender[0], sender[1]) == (b"", arguments.remote[0], 0), (data[:20], sender)
                time.sleep(arguments.interval)
        except OSError as failure:
            error = name_of(failure)
        report(answers=len(times_us), times_us=times_us, error=error)


def echo(arguments: argparse.Namespace) -> None:
    with open_socket(arguments) as sock:
        report(event="ready")
        found = []
        for _ in range(arguments.count):
            data, sender = sock.recvfrom(MAX_MESSAGE)
            found.append(digest(data))
            sock.sendto(data, sender[:2])
        report(echoed=len(found), digests=found, drained=drain(sock, arguments.timeout))


def info(arguments: argparse.Namespace) -> None:
    """The kernel's connections, and those of its counters that are not 0."""
    with open_socket(arguments) as sock:
        report(**rds_info(sock))


def rds_info(sock: socket.socket) -> dict[str, Any]:
    """`sock` is any RDS socket."""
    connections = [
        {"local": socket.inet_ntoa(local), "peer": socket.inet_ntoa(peer), "transport": text(transport),
         "next_tx_seq": next_tx, "next_rx_seq": next_rx, "flags": flags, "tos": tos}
        for next_tx, next_rx, local, peer, transport, flags, tos in info_page(sock, RDS_INFO_CONNECTIONS, INFO_CONNECTION)
    ]  # fmt: skip
    counters = {text(name): value for name, value in info_page(sock, RDS_INFO_COUNTERS, INFO_COUNTER) if value}
    return {"connections": connections, "counters": counters}


def text(field: bytes) -> str:
    return field.split(b"\0")[0].decode()


def name_of(failure: OSError) -> str:
    return errno.errorcode.get(failure.errno or 0, str(failure))


def report(**values: object) -> None:
    print(json.dumps(values), flush=True)


VERBS = {"recv": receive, "send": send, "ping": ping, "echo": echo, "info": info}

if __name__ == "__main__":
    main()
