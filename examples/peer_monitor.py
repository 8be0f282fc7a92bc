"""Say when peers come up, go down or restart.

python peer_monitor.py                                  watch a node that this program opens and closes
python peer_monitor.py --local 10.0.0.1 10.0.0.2 10.0.0.3   watch the nodes on two other machines
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import trio

import rdsx

PING_PORT = 0


def show(event: rdsx.Event, as_json: bool) -> bool:
    """Print an event; whether it was that a peer went down."""
    match event:
        case rdsx.PeerUp():
            name, text = "up", f"as {event.kind!r}"
        case rdsx.PeerDown():
            name, text = "down", f"because {event.reason!r}"
        case rdsx.PeerRestarted():
            name, text = "restarted", f"{event.flushed} messages to its former life dropped"
        case _:  # congestion
            return False
    if as_json:
        print(json.dumps({"event": name, **dataclasses.asdict(event)}), flush=True)
    else:
        print(f"{event.peer} {name}, {text}", flush=True)
    return name == "down"


async def come_and_go(address: str, config: rdsx.NodeConfig, count: int) -> None:
    """Live `count` lives, each until somebody has connected. For the monitor each is a restart."""
    for _ in range(count):
        async with rdsx.open_node(address, config=config) as node:
            with node.events() as events:
                await events.receive()


async def run(options: argparse.Namespace) -> None:
    config = rdsx.NodeConfig(port=options.port)
    async with rdsx.open_node(options.local, config=config) as node, trio.open_nursery() as nursery:
        with node.events() as events, await node.bind() as sock:
            for peer in options.peers or ["127.0.0.2"]:
                # The connection is made for the first message, here a ping, which waits until the peer is there.
                await sock.sendto(b"", (peer, PING_PORT))
            if not options.peers:
                nursery.start_soon(come_and_go, "127.0.0.2", config, options.count)
            downs = 0
            async for event in events:
                downs += show(event, options.json)
                if downs == options.count:
                    break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help="address of a node to watch; peers that connect to us are shown too")
    parser.add_argument("--local", default="127.0.0.1", metavar="ADDRESS", help="our own address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=rdsx.RDS_TCP_PORT, metavar="N", help="TCP port of all nodes (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, metavar="N", help="end when peers have gone down so often (default: 2 without PEER, else never)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    if options.count is None and not options.peers:
        options.count = 2
    try:
        trio.run(run, options)
    except* KeyboardInterrupt:
        pass
    except* OSError as errors:
        sys.exit(f"peer_monitor: {errors.exceptions[0]}")


if __name__ == "__main__":
    main()
