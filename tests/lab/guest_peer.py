"""The kernel's own RDS in a guest, told what to do by JSON lines: what `peer.py` is for rdsx. `driver.py` is the other end.

Requests are lines of the file named on the command line, which the host appends to; answers go to stdout. Each request runs in a thread of
its own, so that a send that blocks in the kernel stops nothing else. Standard library only; runs under any Python from 3.9 on, with -I -S.
Ends when it is killed.

usage: guest_peer.py REQUESTS ADDRESS
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import itertools
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # -I leaves it out

import guest_rds
from guest_rds import SOL_RDS, rds_info, rds_socket, unacknowledged
from traffic import digest, messages

RDS_CANCEL_SENT_TO = 1
MAX_MESSAGE = 1 << 20
BATCH, BATCH_S = 64, 0.05  # to say something costs a write over 9p
POLL_S = 0.01  # a file over 9p makes no event

libc = ctypes.CDLL(None, use_errno=True)
speaking = threading.Lock()


class Peer:
    """The sockets by port, and one method per verb; the same verbs as rdsx's `peer.Peer` has."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.sockets: dict[int, socket.socket] = {}
        self.sent: Counter[int] = Counter()

    def bind(self, port: int = 0, receive_buffer: int = 0, send_buffer: int = 0) -> int:
        sock = rds_socket(send_buffer, receive_buffer)
        if ":" in self.host:
            checked(libc.bind(sock.fileno(), *sockaddr(self.host, port)))
        else:
            sock.bind((self.host, port))
        bound: int = sock.getsockname()[1]
        self.sockets[bound] = sock
        return bound

    def receive(self, port: int) -> None:
        """From now on take what comes, and say so: a `received` event for each batch."""
        sock, buffer = self.sockets[port], memoryview(bytearray(MAX_MESSAGE))
        while True:
            began_s = time.monotonic()
            taken = [take(sock, buffer, 0)]
            while len(taken) < BATCH and time.monotonic() < began_s + BATCH_S:
                try:
                    taken.append(take(sock, buffer, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    break
            say(event="received", port=port, messages=taken)

    def send(
        self, port: int, host: str, to: int, *, seed: int, count: int, low: int, high: int, skip: int = 0, interval_s: float = 0.0
    ) -> dict[str, Any]:
        """Queue messages, and wait until the peer's TCP has them."""
        for message in itertools.islice(messages(seed, count, low, high), skip, None):
            send_to(self.sockets[port], message, host, to)
            self.sent[port] += 1
            time.sleep(interval_s)
        if ":" not in host:
            while unacknowledged(self.sockets[port], port):
                time.sleep(POLL_S)
        return {"sent": count - skip}

    def queue(
        self, port: int, host: str, to: int, *, seed: int, count: int, low: int, high: int, interval_s: float = 0.0
    ) -> dict[str, Any]:
        """Queue what the kernel takes without waiting; says how many, and why no more."""
        sent, error = 0, None
        for message in messages(seed, count, low, high):
            try:
                send_to(self.sockets[port], message, host, to, socket.MSG_DONTWAIT)
            except OSError as failure:
                error = errno.errorcode[failure.errno or 0]
                break
            sent += 1
            self.sent[port] += 1
            time.sleep(interval_s)
        return {"sent": sent, "error": error}

    def cancel(self, port: int, host: str, to: int) -> None:
        self.sockets[port].setsockopt(SOL_RDS, RDS_CANCEL_SENT_TO, bytes(sockaddr(host, to)[0]))

    def account(self, port: int) -> dict[str, int]:
        """What was sent from a port, and how much of it the peer's TCP has not acknowledged."""
        while True:
            sent = self.sent[port]
            waiting = unacknowledged(self.sockets[port], port)
            if sent == self.sent[port]:
                return {"sent": sent, "unacknowledged": waiting}

    def ping(self, host: str, *, count: int = 1, interval_s: float = 0.0) -> dict[str, Any]:
        sock = self.sockets[self.bind()]
        buffer = memoryview(bytearray(1))
        times_us = []
        for _ in range(count):
            began_s = time.monotonic()
            send_to(sock, b"", host, 0)
            answer = take(sock, buffer, 0)
            times_us.append(round((time.monotonic() - began_s) * 1e6))
            assert answer in ([digest(b""), f"{host}:0"], [digest(b""), ":0"]), answer
            time.sleep(interval_s)
        return {"answers": len(times_us), "times_us": times_us}

    def info(self) -> dict[str, Any]:
        sock = next(iter(self.sockets.values()))
        return rds_info(sock)


def take(sock: socket.socket, buffer: memoryview, flags: int) -> list[str]:
    count, sender = sock.recvfrom_into(buffer, 0, flags)
    host = sender[0] if len(sender) == 2 else ""  # Python has room for half of an IPv6 address here
    return [digest(buffer[:count]), f"{host}:{sender[1]}"]


def send_to(sock: socket.socket, message: bytes, host: str, port: int, flags: int = 0) -> None:
    if ":" not in host:
        sock.sendto(message, flags, (host, port))
    else:
        checked(libc.sendto(sock.fileno(), message, len(message), flags, *sockaddr(host, port)))


def sockaddr(host: str, port: int) -> tuple[Any, int]:
    """For calls that Python does not know for AF_RDS with IPv6, and for options."""
    if ":" in host:
        packed = struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), 0, socket.inet_pton(socket.AF_INET6, host), 0)
    else:
        packed = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(host))
    return ctypes.create_string_buffer(packed, len(packed)), len(packed)


def checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def answer(peer: Peer, request: dict[str, Any]) -> None:
    number, verb = request.pop("id"), request.pop("do")
    try:
        say(id=number, result=getattr(peer, verb)(**request))
    except Exception as error:  # whatever it is, the test shall see it
        say(id=number, error=f"{type(error).__name__}: {error}")


def say(**values: object) -> None:
    line = json.dumps(values)
    with speaking:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests")
    parser.add_argument("address")
    arguments = parser.parse_args()
    peer = Peer(arguments.address)
    say(id=0, result=guest_rds.__file__)
    descriptor, buffer = os.open(arguments.requests, os.O_RDONLY), b""
    while True:
        piece = os.read(descriptor, 65536)
        if not piece:
            time.sleep(POLL_S)
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            threading.Thread(target=answer, args=(peer, json.loads(line)), daemon=True).start()


if __name__ == "__main__":
    main()
