"""The worked examples of a live kernel's first bytes (spec F.1), byte for byte, in both address orders."""

from __future__ import annotations

import pytest

import rdsx
from kernelkit import GUARD_S, HEADER_BYTES, KERNEL, LARGER, SMALLER, Kernel, kernel_and_node, pack, pack_map, read_exactly, reset, send_all

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])


def example(text: str) -> bytes:
    return bytes.fromhex(text)


MAP = example(
    """
    00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
    00 00 20 00 00 00 00 00  01 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
    """
)
PROBE_OF_6_1 = example(
    """
    00 00 00 00 00 00 00 01  00 00 00 00 00 00 00 00
    00 00 00 00 00 01 00 00  00 00 00 00 00 00 00 00
    05 00 08 00 00 00 00 00  00 00 00 00 00 00 00 00
    """
)
PROBE_OF_7_0 = PROBE_OF_6_1[:32] + example("05 00 08 06 de ad be ef  08 00 00 00 00 00 00 00")
PONG = example(
    """
    00 00 00 00 00 00 00 01  00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 01  00 00 00 00 00 00 00 00
    05 00 01 00 00 00 00 00  00 00 00 00 00 00 00 00
    """
)
HELLO = (
    example(
        """
    00 00 00 00 00 00 00 02  00 00 00 00 00 00 00 00
    00 00 00 05 0f a0 0f a1  00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
    """
    )
    + b"hello"
)


def hello_of(node: rdsx.Node) -> bytes:
    """What an rdsx node adds to the first map of each connection, in the field that kernels do not look at there."""
    return b"R\x01\x01\0" + node.generation.to_bytes(4, "big") + bytes(8)


def test_the_scripted_kernel_speaks_as_the_live_one() -> None:
    assert pack_map()[:HEADER_BYTES] == MAP
    assert len(pack_map()) == 8240
    kernel = Kernel(KERNEL, SMALLER, 16385)
    assert kernel.probe().pack() == PROBE_OF_6_1
    assert Kernel(KERNEL, SMALLER, 16385, 0xDEADBEEF).probe().pack() == PROBE_OF_7_0
    assert pack(2, b"hello", sport=4000, dport=4001) == HELLO


@both_orders
async def test_first_bytes_of_a_connection(address: str) -> None:
    async with kernel_and_node(address, ack_delay_s=GUARD_S) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.raw_link()
            first = await read_exactly(link, len(MAP) + 8192)
            assert first[:HEADER_BYTES] == MAP[:32] + hello_of(node)
            assert first[HEADER_BYTES:] == bytes(8192)
            await send_all(link, pack_map())
            assert await read_exactly(link, len(PONG)) == PONG
            await sock.sendto(b"hello", (KERNEL, 4001))
            assert await read_exactly(link, len(HELLO)) == HELLO
            # The connection is lost before anybody has looked at its acknowledgements: all is resent, and differs in one byte each.
            reset(link)
            link = await kernel.raw_link(poked=True)
            await send_all(link, pack_map())
            again = await read_exactly(link, len(MAP) + 8192 + len(PONG) + len(HELLO))
            assert again[:HEADER_BYTES] == MAP[:32] + hello_of(node)
            resent = again[len(MAP) + 8192 :]
            original = PONG + HELLO
            assert [(at, byte) for at, byte in enumerate(resent) if byte != original[at]] == [(24, 4), (HEADER_BYTES + 24, 4)]


@both_orders
async def test_answer_to_a_probe_of_6_1(address: str) -> None:
    async with kernel_and_node(address) as (kernel, _):
        link = await kernel.raw_link()
        await send_all(link, pack_map() + PROBE_OF_6_1)
        await read_exactly(link, len(MAP) + 8192)
        assert await read_exactly(link, len(PONG)) == PONG
        assert await read_exactly(link, len(PONG)) == b"\0\0\0\0\0\0\0\2" + PONG[8:]


@both_orders
async def test_answer_to_a_probe_of_7_0_has_our_generation(address: str) -> None:
    async with kernel_and_node(address) as (kernel, node):
        link = await kernel.raw_link()
        await send_all(link, pack_map() + PROBE_OF_7_0)
        await read_exactly(link, len(MAP) + 8192)
        assert await read_exactly(link, len(PONG)) == PONG
        answer = await read_exactly(link, len(PONG))
        assert answer[:32] == b"\0\0\0\0\0\0\0\2" + PONG[8:32]
        assert answer[32:] == b"\x05\0\x01\x06" + node.generation.to_bytes(4, "big") + bytes(8)
