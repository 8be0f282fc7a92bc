"""A process that has imported what tests need, and forks one that is in a network namespace in some milliseconds.

The agent and the hosts' nodes are to be processes of their own: to be killed, to be in a namespace as a whole, and to not wait for each
other. Started one by one they would spend most of a test on importing.

A request is JSON with a function's name and its keyword arguments, and two descriptors: the namespace, and one end of a pair of sockets on
which the function and the test exchange JSON, one object in each packet. `python -m rdmaip.zygote FD` is the zygote.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from namespaces import enter

__all__ = ["Process", "Zygote", "receive_json", "send_json"]

PRELOADED = ("rdmaip.agent_process", "rdmaip.traffic")
LARGEST = 1 << 20
GUARD_S = 20.0  # generous: what is waited for takes milliseconds, or a time that the test has set
HERE = Path(__file__).parents[1]


class Zygote:
    """Starts processes. Leaving the block ends the zygote and kills what it started."""

    def __init__(self) -> None:
        self._processes: list[Process] = []

    def __enter__(self) -> Zygote:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        with its:
            command = [sys.executable, "-m", "rdmaip.zygote", str(its.fileno())]
            self._program = subprocess.Popen(command, pass_fds=[its.fileno()], env=os.environ | {"PYTHONPATH": path}, cwd="/")
        self._sock = ours
        self._sock.settimeout(GUARD_S)
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill_all()
        self._sock.close()
        self._program.wait(GUARD_S)

    def kill_all(self) -> None:
        """... that it has started; it can start others."""
        while self._processes:
            self._processes.pop().kill()

    def start(self, function: str, namespace: int, **arguments: object) -> Process:
        """Have `module:function` run in a new process in that namespace."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            request = json.dumps({"function": function, "arguments": arguments}).encode()
            socket.send_fds(self._sock, [request], [namespace, its.fileno()])
        process = Process(function, int(self._sock.recv(LARGEST)), ours)
        self._processes.append(process)
        return process


class Process:
    """One that was started."""

    def __init__(self, name: str, pid: int, sock: socket.socket) -> None:
        self.name = name
        self.pid = pid
        self._sock = sock
        self._pidfd = os.pidfd_open(pid)
        self.is_alive = True

    def send(self, **message: object) -> None:
        send_json(self._sock, message)

    def receive(self, guard_s: float = GUARD_S) -> dict[str, Any]:
        """The next message. AssertionError if none comes, or the process has ended."""
        ready, _, _ = select.select([self._sock], [], [], guard_s)
        assert ready, f"{self.name}: no message within {guard_s:g} s"
        message = receive_json(self._sock)
        assert message is not None, f"{self.name} has ended"
        return message

    def receive_nowait(self) -> dict[str, Any] | None:
        """A message that is there; None without one, or if the process has ended."""
        ready, _, _ = select.select([self._sock], [], [], 0)
        return receive_json(self._sock) if ready else None

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], guard_s: float = GUARD_S) -> dict[str, Any]:
        """The next message of that kind; those before it are dropped, and told if it does not come."""
        end_s = time.monotonic() + guard_s
        dropped = []
        while True:
            try:
                message = self.receive(max(0.0, end_s - time.monotonic()))
            except AssertionError as error:
                raise AssertionError(f"{error}; before it: {dropped}") from None
            if wanted(message):
                return message
            dropped.append(message)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Twice is harmless."""
        if self.is_alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait()

    def terminate(self) -> None:
        """SIGTERM."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def wait(self, guard_s: float = GUARD_S) -> None:
        """Until it has ended."""
        ready, _, _ = select.select([self._pidfd], [], [], guard_s)
        assert ready, f"{self.name} does not end"
        self.is_alive = False
        os.close(self._pidfd)
        self._sock.close()


def send_json(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.send(json.dumps(message).encode())


def receive_json(sock: socket.socket) -> dict[str, Any] | None:
    """None at the end."""
    data = sock.recv(LARGEST)
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def main(descriptor: int) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel; the test watches them itself
    with socket.socket(fileno=descriptor) as sock:
        while True:
            request, controls, _, _ = sock.recvmsg(LARGEST, socket.CMSG_SPACE(2 * array.array("i").itemsize))
            if not request:
                return
            namespace, channel = array.array("i", controls[0][2])
            pid = os.fork()
            if pid == 0:
                sock.close()
                become(json.loads(request), namespace, socket.socket(fileno=channel))
            os.close(namespace)
            os.close(channel)
            sock.send(str(pid).encode())


def become(request: dict[str, Any], namespace: int, channel: socket.socket) -> None:
    """The child: never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        enter(namespace)
        module, _, name = request["function"].partition(":")
        getattr(importlib.import_module(module), name)(channel, **request["arguments"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
