"""`transport="verbs"` with the kernel's rds_rdma over soft-RoCE as the other end: every message once and in order, whatever happens.

Two guests, K with the kernel's RDS and V without. Both ends run `verbs_traffic.py`: messages both ways at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.guest import Guest, GuestProcess
from lab.lab import Lab
from lab.readiness import in_full
from lab.verbs_guest import SOFT_ROCE, add_soft_roce, verbs_command

pytestmark = [pytest.mark.lab, pytest.mark.slow, in_full]

PROGRAM = Path(__file__).with_name("verbs_traffic.py").absolute()
OPERATIONS = Path(__file__).with_name("verbs_operations.py").absolute()
KERNEL, SMALLER, LARGER = "10.77.0.4", "10.77.0.3", "10.77.0.5"
KERNEL6, SMALLER6 = "fd77::4", "fd77::3"
RUN_S = 120.0
POLL_S = 0.1
HEAD_START_S = 1.0
FEW, MANY, LONG = 60, 2000, 20000


@dataclass
class Two:
    """The guests, and how a program gets to see pyverbs in them."""

    kernel: Guest
    verbs: Guest
    scratch: Path

    async def run(
        self,
        local: str = SMALLER,
        remote: str = KERNEL,
        *,
        count: int,
        high: int,
        slow: str = "",
        resets: int = 0,
        options: Sequence[str] = (),
        kernels_options: Sequence[str] = (),
        starts: str = "",
        strike: Callable[[Two], Awaitable[None]] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both flows to their ends; the accounts of our end and of the kernel's. `strike` is called when messages flow; `options` are of
        our program, `kernels_options` of the other; who `starts` begins a second before the other, and so makes the connection."""
        sizes = [count, 0, high]
        ours = ["$0.in", "verbs", local, remote, 1, 2, *sizes, *(["--slow"] if slow == "verbs" else []), *["--resets", resets], *options]
        theirs = ["$0.in", "kernel", remote, local, 2, 1, *sizes, *(["--slow"] if slow == "kernel" else []), *kernels_options]
        commands = [(self.verbs, self.command(self.verbs, ours)), (self.kernel, self.command(self.kernel, theirs))]
        return await self.converse(commands, ended='"exact"', strike=strike, starts=starts)

    async def converse(
        self,
        commands: list[tuple[Guest, str]],
        *,
        ended: str,
        strike: Callable[[Two], Awaitable[None]] | None = None,
        starts: str = "",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two programs to their ends: both start when both are ready, and stop when both have printed `ended`."""
        async with contextlib.AsyncExitStack() as stack:
            first, second = [await stack.enter_async_context(guest.start_process(command)) for guest, command in commands]
            for process in (first, second):
                await process.wait_output("ready", RUN_S)
            for process in (second, first) if starts == "kernel" else (first, second):
                process.write("go\n")
                await trio.sleep(HEAD_START_S if starts else 0)
            if strike is not None:
                await first.wait_output("flowing", RUN_S)
                await strike(self)
            for process in (first, second):
                await process.wait_output(ended, RUN_S)
            for process in (first, second):
                process.write("stop\n")
            accounts = []
            for process in (first, second):
                status, output = await process.wait(RUN_S)
                assert status == 0, output
                accounts += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            return accounts[0], accounts[1]

    def command(self, guest: Guest, arguments: list[object], program: Path = PROGRAM) -> str:
        command = verbs_command(guest, self.scratch, program, *arguments).replace(" -P ", " ")  # its folder has what it imports
        return command.replace("'$0.in'", "/run/lab/$0.in")


async def start(lab: Lab, series: str, scratch: Path) -> Two:
    await lab.open()
    kernel = await lab.start("K", address=KERNEL, modules=["rdma_rxe", "rds_rdma"], kernel=series)
    verbs = await lab.start("V", address=SMALLER, modules=SOFT_ROCE, kernel=series)
    for guest in (kernel, verbs):
        await add_soft_roce(guest)
    await verbs.check(f"ip address add {LARGER}/24 dev eth0")
    return Two(kernel, verbs, scratch)


@pytest.fixture(scope="module")
def two(series: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Both guests, for all tests of this page: a boot takes longer than most of them."""
    lab = Lab()
    try:
        yield trio.run(start, lab, series, tmp_path_factory.mktemp("pyverbs"))
    finally:
        trio.run(lab.aclose)


def assert_exact(accounts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for end, account in zip(("verbs", "kernel"), accounts, strict=True):
        assert account["exact"], f"{end}: {account}"


async def cable(two: Two) -> None:
    """Longer than the kernel tries, which is once, after 2 s. If nothing of its was under way just then, the connection outlives it."""
    two.verbs.pull_cable()
    await trio.sleep(8)
    two.verbs.plug_cable()


async def test_messages(two: Two) -> None:
    """All sizes, both address orders, many small ones, IPv6."""
    for local in (SMALLER, LARGER):
        assert_exact(await two.run(local, count=FEW, high=1 << 20))
        assert_exact(await two.run(local, count=MANY, high=5000))
    assert_exact(await two.run(SMALLER6, KERNEL6, count=FEW, high=100000))
    assert "WARNING" not in await two.kernel.check("dmesg")


@pytest.mark.parametrize("slow", ["verbs", "kernel"])
async def test_congestion(slow: str, two: Two) -> None:
    """A receiver that is slower than its sender: the sender is told, and waits."""
    accounts = await two.run(count=FEW * 4, high=50000, slow=slow)
    assert_exact(accounts)
    ours = accounts[0]["counters"]
    assert ours["cong_update_queued" if slow == "verbs" else "cong_update_received"] > 1


async def test_resets(two: Two) -> None:
    """We drop the connection while messages flow both ways."""
    for local in (SMALLER, LARGER):
        accounts = await two.run(local, count=MANY, high=20000, resets=3)
        assert_exact(accounts)
        assert accounts[0]["drops"]["reset_by_user"] == 3


async def test_type_of_service(two: Two) -> None:
    """Each has a connection of its own, for both ends, whoever asks for it."""
    for ours, kernels in ((7, 7), (3, 5)):
        accounts = await two.run(count=FEW, high=50000, options=["--tos", str(ours)], kernels_options=["--tos", str(kernels)])
        assert_exact(accounts)
        listed = [{one["tos"]: one for one in account["ib"]} for account in accounts]
        for tos in (ours, kernels):
            ends = [(one[tos]["local_gid"], one[tos]["peer_gid"]) for one in listed]
            gids = tuple(str(IPv6Address(f"::ffff:{host}")) for host in (SMALLER, KERNEL))
            assert ends == [gids, gids[::-1]]
            assert [(one[tos]["max_send_wr"], one[tos]["max_recv_wr"]) for one in listed] == [(256, 1024)] * 2


@pytest.mark.parametrize("starts", ["verbs", "kernel"])
async def test_flow_control(starts: str, two: Two) -> None:
    """The kernel counts credits, whoever makes the connection: it grants us some, and is granted some."""
    await two.kernel.check("sysctl -w net.rds.ib.flow_control=1")
    try:
        for high in (5000, 100000):
            ours, kernels = await two.run(count=FEW * 5, high=high, starts=starts, options=["--credits"])
            assert_exact((ours, kernels))
            for name in ("ib_tx_credit_updates", "ib_rx_credit_updates"):
                assert ours["counters"][name] > 0, name
            assert kernels["counters"]["ib_rx_credit_updates"] > 0
            assert ours["drops"].keys() <= {"reset_by_peer"}
    finally:
        await two.kernel.check("sysctl -w net.rds.ib.flow_control=0")
    ours, kernels = await two.run(count=FEW, high=5000, starts=starts, options=["--credits"])
    assert_exact((ours, kernels))
    assert ours["counters"]["ib_tx_credit_updates"] == 0  # it does not count: it is granted nothing
    assert "WARNING" not in await two.kernel.check("dmesg")


async def test_cable(two: Two) -> None:
    """It is out in the middle of a flow."""
    assert_exact(await two.run(count=LONG, high=2000, strike=cable))


async def test_link_down(two: Two) -> None:
    """The network interface of the kernel's end goes down and comes up again between two flows."""
    down_and_up = "ip link set eth0 down && sleep 1 && ip link set eth0 up"
    assert_exact(await two.run(count=FEW, high=20000))
    await two.kernel.check(f"{down_and_up} && ip -6 address replace {KERNEL6}/64 dev eth0 nodad")
    assert_exact(await two.run(count=FEW, high=20000))


async def test_kernel_rebooted(two: Two) -> None:
    """It knows nothing of us then, and counts from 1 again. What we send meanwhile waits for its next life."""
    sizes: list[object] = [FEW, 0, 20000]
    async with two.verbs.start_process(two.command(two.verbs, ["$0.in", "verbs", SMALLER, KERNEL, 1, 2, *sizes])) as ours:
        seeds = [2, 1]
        for life in range(2):
            async with two.kernel.start_process(two.command(two.kernel, ["$0.in", "kernel", KERNEL, SMALLER, *seeds, *sizes])) as kernels:
                for process in (ours, kernels):
                    await process.wait_output("ready", RUN_S)
                two.kernel.plug_cable()  # its port is bound: what comes to one that is not, is dropped
                for process in (ours, kernels) if life == 0 else (kernels,):
                    process.write("go\n")
                await wait_accounts(ours, 1 + life)
                await wait_accounts(kernels, 1)
                assert [account["exact"] for account in accounts_of(ours) + accounts_of(kernels)] == [True] * (2 + life)
            if life == 0:
                ours.write("go\n")
                two.kernel.pull_cable()
                await two.kernel.reboot()
                await add_soft_roce(two.kernel)
                seeds = [seed + 100 for seed in seeds]
        ours.write("stop\n")
        assert (await ours.wait(RUN_S)).status == 0


def accounts_of(process: GuestProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]


async def wait_accounts(process: GuestProcess, count: int) -> None:
    with trio.fail_after(RUN_S):
        while len(accounts_of(process)) < count:
            await trio.sleep(POLL_S)


async def test_loss(two: Two) -> None:
    """Packets are lost on both ways. Soft-RoCE tries again after 2 s; a message that is lost twice costs the connection."""
    async with two.kernel.netem("loss 2%"), two.verbs.netem("loss 2%"):
        assert_exact(await two.run(count=FEW, high=2000))


@pytest.mark.parametrize("asks", ["verbs", "kernel"])
async def test_operations(asks: str, two: Two) -> None:
    """Memory of one end is written and read by the other: what is refused costs the connection and no more."""
    owns = "kernel" if asks == "verbs" else "verbs"
    hosts, guests = {"verbs": SMALLER, "kernel": KERNEL}, {"verbs": two.verbs, "kernel": two.kernel}
    parts = {asks: "asks", owns: "owns"}
    commands = [
        two.command(guests[one], ["$0.in", one, hosts[one], hosts[other], parts[one]], OPERATIONS)
        for one, other in ((owns, asks), (asks, owns))
    ]
    owner, asker = await two.converse(list(zip((guests[owns], guests[asks]), commands, strict=True)), ended='{"')
    assert asker == {"outcomes": ["SUCCESS"] * 13, "same": [True] * 6, "refused": ["REMOTE_ERROR"] * 3}
    assert [one[2] for one in owner["seen"] if isinstance(one, list)] == [True] * 6
    assert [one for one in owner["seen"] if not isinstance(one, list)] == ["read"] * 6 + ["once", "next", "next", "next"]
    assert owner["once"] == "first"


async def test_ping(two: Two) -> None:
    """Each end answers the other's, and the kernel has nothing to complain of."""
    assert_exact(await two.run(count=1, high=10))
    ping = "-m", "rdsx.cli", "ping", "--transport", "kernel", "-c", 3, "-i", "0.1", "--json", SMALLER
    ours = "-m", "rdsx.cli", "ping", "--transport", "verbs", "-I", LARGER, "-c", 3, "-i", "1", "--json", KERNEL
    lines = (await two.verbs.check(verbs_command(two.verbs, two.scratch, *ours), RUN_S)).splitlines()
    assert json.loads(lines[-1])["received"] == 3
    command = two.command(two.verbs, ["$0.in", "verbs", SMALLER, KERNEL, 1, 2, 0, 0, 1])
    async with two.verbs.start_process(command) as node:
        await node.wait_output("ready", RUN_S)
        lines = (await two.kernel.check(two.kernel.python_command(*ping))).splitlines()
        assert json.loads(lines[-1])["received"] == 3
    assert "WARNING" not in await two.kernel.check("dmesg")


async def test_agent_moves_the_address(two: Two) -> None:
    """Our address is on one of two devices, whose port fails amid a flow: `rdsx rdmaip` moves it, and the node follows to the other.

    First with a kernel; then with a node of ours that counts, so that the one that moves has atomics under way: each has one outcome, and
    those that were dropped were done once or not at all.
    """
    config = two.scratch / "rdmaip.toml"
    config.write_text(f"""
[rdmaip]
control = "/run/rdmaip.sock"
[[group]]
name = "fabric"
ports = ["first", "second"]
subnets = ["10.77.0.0/24"]
address = [{{ ip = "{SMALLER}/24", home = "first" }}]
""")
    agent = two.verbs.python_command("-m", "rdsx.cli", "rdmaip", "run", config)
    async with two_devices(two.verbs), two.verbs.start_process(agent) as process:
        await process.wait_output("port first settled", RUN_S)
        accounts = await two.run(count=MANY, high=20000, strike=fail_port)
        assert_exact(accounts)
        assert accounts[0]["drops"]["address_moved"] == 1
        assert f"inet {SMALLER}/32" in await two.verbs.check("ip -4 address show dev second")
        await two.verbs.check("ip link set first_out up")
        await process.wait_output(f"{SMALLER} moved second -> first", RUN_S)
        await two.kernel.check("modprobe -r rds_rdma && modprobe -a rdma_ucm ib_uverbs")
        adds = two.command(two.verbs, ["$0.in", "verbs", SMALLER, KERNEL, "adds"], OPERATIONS)
        counts = two.command(two.kernel, ["$0.in", "verbs", KERNEL, SMALLER, "counts"], OPERATIONS)
        added, counted = await two.converse([(two.verbs, adds), (two.kernel, counts)], ended='{"', strike=fail_port)
        await two.kernel.check("modprobe rds_rdma")
        # OTHER_ERROR: the device gave up an operation whose answer did not come.
        succeeded, outcomes = added["outcomes"]["SUCCESS"], sum(added["outcomes"].values())
        assert (outcomes, added["unique"], set(added["outcomes"]) <= {"SUCCESS", "DROPPED", "OTHER_ERROR"}) == (1600, True, True)
        assert succeeded <= counted["number"] <= outcomes
        assert added["drops"], "the connection was not lost"  # by the move, or by an operation that was given up just before it


@contextlib.asynccontextmanager
async def two_devices(guest: Guest) -> AsyncIterator[None]:
    """SMALLER is on `first` of two ports, each with soft-RoCE; a bridge joins them to the network card."""
    await guest.check(f"""
        modprobe -a veth bridge && rdma link delete rxe0 && ip -4 address flush dev eth0 &&
        ip link add br0 type bridge && ip link set br0 up && ip link set eth0 master br0 &&
        for port in first second; do
            ip link add $port type veth peer name ${{port}}_out && ip link set ${{port}}_out master br0 up && ip link set $port up &&
            rdma link add rxe_$port type rxe netdev $port
        done &&
        ip address add {SMALLER}/24 dev first
    """)
    try:
        yield
    finally:
        await guest.check(f"""
            rdma link delete rxe_first; rdma link delete rxe_second; ip link delete first; ip link delete second; ip link delete br0
            ip address add {SMALLER}/24 dev eth0 && ip address add {LARGER}/24 dev eth0 && rdma link add rxe0 type rxe netdev eth0
        """)


async def test_bond_fails_over(two: Two) -> None:
    """Our address is on a bond, whose first port fails amid a flow: the CM says that the address has changed, and we connect anew.

    Last on this page: the other guest has to learn our link address again after it.
    """
    async with bonded(two.verbs):
        accounts = await two.run(count=MANY, high=20000, strike=fail_port)
        assert_exact(accounts)
        assert accounts[0]["drops"]["address_changed"] == 1
        assert "Active Slave: second" in await two.verbs.check("cat /proc/net/bonding/bond0")


async def fail_port(two: Two) -> None:
    await two.verbs.check("ip link set first_out down")


@contextlib.asynccontextmanager
async def bonded(guest: Guest) -> AsyncIterator[None]:
    """SMALLER and the device move to a bond of two ports, `first` and `second`, which has the address of the one in use; a bridge joins
    them to the network card. Soft-RoCE is on the bond: what a bond receives it takes for nobody's if it is on the ports."""
    await guest.check(f"""
        modprobe -a bonding veth bridge && rdma link delete rxe0 && ip -4 address flush dev eth0 &&
        ip link add br0 type bridge && ip link set br0 up && ip link set eth0 master br0 &&
        ip link add bond0 type bond mode active-backup miimon 50 fail_over_mac active &&
        for port in first second; do
            ip link add $port type veth peer name ${{port}}_out && ip link set ${{port}}_out master br0 up && ip link set $port master bond0
        done &&
        ip link set bond0 up && ip address add {SMALLER}/24 dev bond0 && rdma link add rxe0 type rxe netdev bond0
    """)
    try:
        yield
    finally:
        await guest.check(f"""
            rdma link delete rxe0; ip link delete bond0; ip link delete first; ip link delete second; ip link delete br0
            ip address add {SMALLER}/24 dev eth0 && ip address add {LARGER}/24 dev eth0 && rdma link add rxe0 type rxe netdev eth0
        """)
