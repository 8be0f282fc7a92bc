"""A peer that says it has eight paths, as a kernel does, so that the kernel at the other end opens them all. Run in the lab's namespace.

It takes the kernel's connections and prints how many there are, until it is killed.

usage: paths_peer.py ADDRESS
"""

from __future__ import annotations

import socket
import struct
import sys

HEADER = struct.Struct(">QQIHHBB4xH16s")
RDS_PORT = 16385
CONG_BITMAP = 1
MAP = HEADER.pack(0, 0, 8192, 0, 0, CONG_BITMAP, 0, 0, b"") + bytes(8192)
PONG = HEADER.pack(1, 0, 0, 0, 1, 0, 0, 0, b"\x05\x00\x08")


def main() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((sys.argv[1], RDS_PORT))
        listener.listen()
        print("ready", flush=True)
        links = []
        while True:
            link, _ = listener.accept()
            links.append(link)
            if len(links) == 1:
                link.sendall(MAP + PONG)
            print(len(links), flush=True)


if __name__ == "__main__":
    main()
