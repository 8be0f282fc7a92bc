"""SqliteStore: what survives a restart of either side, and files that are refused. Real files; the network and the clock are virtual."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from callskit import PORT, A, B, node_config
from rdsx.calls import CallConfig, Courier, Executed, IncomingCall, SqliteStore, StoreError
from rdsx.calls import store as store_module
from rdsx.testing import VirtualNetwork, run

T = 0x21
TABLE = "CREATE TABLE IF NOT EXISTS runs (payload BLOB)"


class Host:
    """An address whose courier can be killed and started again. Virtual time stands still while the disk works."""

    def __init__(self, network: VirtualNetwork, address: str, nursery: trio.Nursery, path: Path | None, number: int) -> None:
        self.network = network
        self.address = address
        self.nursery = nursery
        self.path = path
        self.number = number
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.runs: list[bytes] = []
        self.sleep_s = 0.0

    async def start(self) -> Courier:
        return await self.nursery.start(self._live)  # type: ignore[no-any-return]

    async def _live(self, task_status: trio.TaskStatus[Courier]) -> None:
        self.number += 1
        self.over = trio.Event()
        store = None if self.path is None else SqliteStore(self.path, schema=TABLE)
        with trio.CancelScope() as self.scope:
            async with (
                rdsx.open_node(self.address, transport=self.network, config=node_config(self.number)) as node,
                rdsx.open_courier(await node.bind(PORT), config=CallConfig(seed=self.number), store=store) as courier,
            ):
                courier.register(T, self.handle)
                if store is not None:
                    courier.register(T + 1, self.handle_inside, durability="transaction")
                task_status.started(courier)
                await trio.sleep_forever()
        self.over.set()

    async def handle(self, call: IncomingCall) -> bytes:
        self.runs.append(call.payload)
        await trio.sleep(self.sleep_s)
        return b"ran " + call.payload

    def handle_inside(self, call: IncomingCall) -> bytes:
        assert call.transaction is not None
        call.transaction.execute("INSERT INTO runs VALUES (?)", (call.payload,))
        if call.payload == b"bad":
            raise ValueError("not this one")
        return b"stored"

    async def kill(self) -> None:
        """As SIGKILL: nothing is said to anybody, nothing more is written."""
        self.network.crash(self.address)
        self.scope.cancel()
        await self.over.wait()

    def stored(self) -> list[bytes]:
        assert self.path is not None
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return [payload for (payload,) in connection.execute("SELECT payload FROM runs")]


@contextlib.asynccontextmanager
async def hosts(path: Path, *, here: bool = False) -> AsyncIterator[tuple[Host, Host]]:
    """A caller, with a store if asked for, and a callee with one."""
    network = VirtualNetwork(1)
    async with trio.open_nursery() as nursery:
        caller = Host(network, A, nursery, path / "caller.db" if here else None, 10)
        callee = Host(network, B, nursery, path / "callee.db", 20)
        yield caller, callee
        for host in (caller, callee):
            host.scope.cancel()


async def until(condition: Callable[[], Any]) -> None:
    """The disk is as slow as it likes, and virtual time passes meanwhile."""
    while not condition():
        await trio.sleep(0.05)


def on_disk(courier: Courier) -> bool:
    committer = courier._driver._committer
    assert committer is not None
    return not committer.is_behind and not committer.starts


def with_hosts(path: Path, scenario: Any, **arguments: Any) -> None:
    async def main() -> None:
        async with hosts(path, **arguments) as (caller, callee):
            await scenario(caller, callee)

    # Threads write the files: the clock may not jump while they do.
    clock = trio.testing.MockClock(autojump_threshold=0.02)
    trio.run(main, clock=clock)


def test_a_result_survives_the_callee(tmp_path: Path) -> None:
    """Recorded, and the status lost: the resend gets the stored result."""

    async def scenario(caller: Host, callee: Host) -> None:
        here, there = await caller.start(), await callee.start()
        assert await here.call((B, PORT), T, b"one") == (0, b"ran one")
        life = there.life
        callee.sleep_s = 1.0
        pending = here.start_call((B, PORT), T, b"two")
        await until(lambda: len(callee.runs) == 2)
        caller.network.partition(A, B)
        await until(lambda: there.statistics().counters["handled_ok"] == 2 and on_disk(there))
        await callee.kill()
        caller.network.heal(A, B)
        there = await callee.start()
        assert there.life == life
        assert await pending.wait() == (0, b"ran two")
        assert callee.runs == [b"one", b"two"]

    with_hosts(tmp_path, scenario)


def test_a_handler_that_a_crash_interrupted(tmp_path: Path) -> None:
    async def scenario(caller: Host, callee: Host) -> None:
        here, _ = await caller.start(), await callee.start()
        callee.sleep_s = 10.0
        pending = here.start_call((B, PORT), T, b"outside effects")
        await until(lambda: callee.runs)
        await callee.kill()
        await callee.start()
        with pytest.raises(rdsx.calls.CallInterruptedError) as caught:
            await pending.wait()
        assert caught.value.executed is Executed.YES
        assert callee.runs == [b"outside effects"]

    with_hosts(tmp_path, scenario)


def test_a_call_that_a_crash_left_unseen(tmp_path: Path) -> None:
    async def scenario(caller: Host, callee: Host) -> None:
        here, _ = await caller.start(), await callee.start()
        await here.call((B, PORT), T, b"one")
        caller.network.partition(A, B)
        pending = here.start_call((B, PORT), T, b"two")
        await trio.sleep(0.5)
        await callee.kill()
        caller.network.heal(A, B)
        await callee.start()
        assert await pending.wait() == (0, b"ran two")
        assert callee.runs == [b"one", b"two"]

    with_hosts(tmp_path, scenario)


def test_effects_and_result_are_one_transaction(tmp_path: Path) -> None:
    async def scenario(caller: Host, callee: Host) -> None:
        here, _ = await caller.start(), await callee.start()
        for number in range(3):
            pending = [here.start_call((B, PORT), T + 1, b"%d %d" % (number, each)) for each in range(20)]
            await trio.sleep(0.002 * number)
            await callee.kill()
            await callee.start()
            for each in pending:
                assert await each.wait() == (0, b"stored")
        with pytest.raises(rdsx.calls.HandlerFailedError, match="not this one"):
            await here.call((B, PORT), T + 1, b"bad")
        assert await here.call((B, PORT), T + 1, b"good") == (0, b"stored")
        wanted = [b"%d %d" % (number, each) for number in range(3) for each in range(20)] + [b"good"]
        assert sorted(callee.stored()) == sorted(wanted)

    with_hosts(tmp_path, scenario)


def test_a_durable_call_survives_the_caller(tmp_path: Path) -> None:
    async def scenario(caller: Host, callee: Host) -> None:
        here, _ = await caller.start(), await callee.start()
        callee.sleep_s = 3.0
        here.start_call((B, PORT), T, b"durable", durable=True)
        here.start_call((B, PORT), T, b"fleeting")
        await until(lambda: len(callee.runs) == 2)
        await caller.kill()
        again = await caller.start()
        assert again.life == here.life
        (recovered,) = again.recovered_calls()
        assert await recovered.wait() == (0, b"ran durable")
        assert await again.call((B, PORT), T, b"next") == (0, b"ran next")
        assert sorted(callee.runs) == [b"durable", b"fleeting", b"next"]
        await caller.kill()
        assert (await caller.start()).recovered_calls() == []

    with_hosts(tmp_path, scenario, here=True)


def test_both_are_killed(tmp_path: Path) -> None:
    async def scenario(caller: Host, callee: Host) -> None:
        here, _ = await caller.start(), await callee.start()
        callee.sleep_s = 1.0
        await here.call((B, PORT), T, b"one")
        two = here.start_call((B, PORT), T, b"two", durable=True)
        await two.wait()
        caller.network.partition(A, B)
        here.start_call((B, PORT), T + 1, b"three", durable=True)
        await until(lambda: on_disk(here))  # and it cannot arrive
        await caller.kill()
        await callee.kill()
        caller.network.heal(A, B)
        again, _ = await caller.start(), await callee.start()
        replies = [await pending.wait() for pending in again.recovered_calls()]
        assert (0, b"stored") in replies
        assert callee.runs.count(b"two") == 1
        assert callee.stored() == [b"three"]

    with_hosts(tmp_path, scenario, here=True)


# -- old copies


def files_of(path: Path) -> dict[Path, bytes]:
    """The store with all that belongs to it."""
    return {each: each.read_bytes() for each in path.parent.glob(path.name + "*")}


def restore(path: Path, copy: dict[Path, bytes]) -> None:
    for each in files_of(path):
        each.unlink()
    for each, data in copy.items():
        each.write_bytes(data)


def test_an_old_copy_is_refused(tmp_path: Path) -> None:
    """Of before the last opening, or of before the last orderly end."""
    path = tmp_path / "a.db"
    run(lambda: opened(path))
    old = path.read_bytes()
    run(lambda: opened(path))
    path.write_bytes(old)
    refused(path, "older copy", "begin with a new file")
    refused(path, "older copy")  # and not only once
    path.unlink()
    run(lambda: opened(path))


def test_a_copy_without_the_file_beside_it_is_refused(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.db", tmp_path / "b.db"
    life = run(lambda: opened(path))
    for each, data in files_of(path).items():
        Path(str(each).replace("a.db", "b.db")).write_bytes(data)
    Path(f"{path}-lock").unlink()
    refused(path, "restored", f"{path}-lock")
    assert run(lambda: opened(moved)) == life


@pytest.mark.parametrize("writes", range(4))
def test_a_crash_while_the_token_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Whichever of the two files was written last, the store opens again, and an older copy does not."""
    path = tmp_path / "a.db"
    run(lambda: opened(path))
    old = path.read_bytes()
    run(lambda: opened(path))

    class CrashError(Exception):
        pass

    left = writes
    real_write, real_set = SqliteStore._write_tokens, SqliteStore._set_meta

    def count() -> None:
        nonlocal left
        if left == 0:
            raise CrashError
        left -= 1

    def write_tokens(self: SqliteStore, *tokens: str) -> None:
        count()
        real_write(self, *tokens)

    def set_meta(self: SqliteStore, key: str, value: str) -> None:
        if key == "token":
            count()
        real_set(self, key, value)

    with monkeypatch.context() as crashing:
        crashing.setattr(SqliteStore, "_write_tokens", write_tokens)
        crashing.setattr(SqliteStore, "_set_meta", set_meta)
        store = SqliteStore(path)
        with pytest.raises(CrashError) if writes < 3 else contextlib.nullcontext():
            store.open((A, PORT), 1)
        store._release()
    run(lambda: opened(path))
    path.write_bytes(old)
    refused(path, "older copy")


def test_a_caller_whose_store_is_an_old_copy(tmp_path: Path) -> None:
    """Restored with all that belongs to it: the peer knows numbers that it would use again."""

    async def scenario(caller: Host, callee: Host) -> None:
        assert caller.path is not None
        here, _ = await caller.start(), await callee.start()
        await here.call((B, PORT), T, b"one")
        await caller.kill()
        old = files_of(caller.path)
        here = await caller.start()
        await here.call((B, PORT), T, b"two")
        await here.call((B, PORT), T, b"three")
        await caller.kill()
        restore(caller.path, old)
        here = await caller.start()
        with pytest.raises(rdsx.calls.CallNotSentError, match="old copy") as caught:
            await here.call((B, PORT), T, b"four")
        assert caught.value.executed is Executed.NO
        assert await here.call((B, PORT), T, b"five") == (0, b"ran five")  # in a session of its own
        assert callee.runs == [b"one", b"two", b"three", b"five"]

    with_hosts(tmp_path, scenario, here=True)


def test_a_caller_whose_store_has_calls_that_have_ended(tmp_path: Path) -> None:
    """Its numbers are new, because they are reserved in blocks; but a call that is under way in it has ended, as the peer was told."""

    async def scenario(caller: Host, callee: Host) -> None:
        assert caller.path is not None
        here, _ = await caller.start(), await callee.start()
        await here.call((B, PORT), T, b"one")
        caller.network.partition(A, B)
        here.start_call((B, PORT), T, b"two", durable=True)
        await until(lambda: on_disk(here))
        await caller.kill()
        old = files_of(caller.path)
        caller.network.heal(A, B)
        here = await caller.start()
        (two,) = here.recovered_calls()
        assert await two.wait() == (0, b"ran two")
        await trio.sleep(1)  # it is released
        await caller.kill()
        restore(caller.path, old)
        (two,) = (await caller.start()).recovered_calls()
        with pytest.raises(rdsx.calls.StoreRolledBackError, match="old copy") as caught:
            await two.wait()
        assert caught.value.executed is Executed.MAYBE
        assert callee.runs == [b"one", b"two"]

    with_hosts(tmp_path, scenario, here=True)


def test_a_callee_whose_store_is_an_old_copy(tmp_path: Path) -> None:
    """Restored with all that belongs to it. A caller notices when it is given the number of a session again that it has had."""

    async def scenario(caller: Host, callee: Host) -> None:
        assert callee.path is not None
        here, there = await caller.start(), await callee.start()
        await callee.kill()
        old = files_of(callee.path)
        await callee.start()
        assert await here.call((B, PORT), T, b"one") == (0, b"ran one")
        await callee.kill()
        restore(callee.path, old)
        assert (await callee.start()).life == there.life
        with pytest.raises(rdsx.calls.PeerForgotError):
            await here.call((B, PORT), T, b"two")
        with pytest.raises(rdsx.calls.CallNotSentError, match="peer's store is an old copy") as caught:
            await here.call((B, PORT), T, b"three")
        assert caught.value.executed is Executed.NO
        assert await here.call((B, PORT), T, b"four") == (0, b"ran four")
        assert callee.runs == [b"one", b"four"]

    with_hosts(tmp_path, scenario)


# -- files


def test_the_end_of_a_durable_call_is_told_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a crash could make a call run of which its caller was told that it never will."""
    may_write = threading.Event()
    may_write.set()
    real_write = SqliteStore.write

    def write(self: SqliteStore, *arguments: Any) -> Any:
        may_write.wait()
        return real_write(self, *arguments)

    monkeypatch.setattr(SqliteStore, "write", write)

    async def scenario(caller: Host, callee: Host) -> None:
        here = await caller.start()
        durable, fleeting = (here.start_call((B, PORT), T, durable=durable) for durable in (True, False))
        await until(lambda: on_disk(here))
        may_write.clear()
        durable.abandon()
        fleeting.abandon()
        await trio.testing.wait_all_tasks_blocked()
        assert fleeting.outcome is not None
        assert (durable.outcome, durable.executed) == (None, Executed.MAYBE)
        may_write.set()
        with pytest.raises(rdsx.calls.CallNotSentError):
            await durable.wait()
        assert durable.executed is Executed.NO

    with_hosts(tmp_path, scenario, here=True)


async def opened(path: Path, address: str = A, port: int = PORT) -> int:
    """Open a courier with this store, and close it in order; returns its life."""
    async with (
        rdsx.open_node(address, transport=VirtualNetwork(1), config=node_config(1)) as node,
        rdsx.open_courier(await node.bind(port), store=SqliteStore(path)) as courier,
    ):
        return courier.life


def refused(path: Path, *words: str, **arguments: Any) -> None:
    with pytest.raises(StoreError) as caught:
        run(lambda: opened(path, **arguments))
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_the_life_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    life = run(lambda: opened(path))
    assert run(lambda: opened(path)) == life
    assert run(lambda: opened(tmp_path / "b.db")) != life


def test_a_store_of_another_courier(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(lambda: opened(path))
    refused(path, "10.0.0.1", "10.0.0.2", address=B)
    refused(path, "7000", "7001", port=7001)


def test_a_store_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(lambda: opened(path))
    lock = f"fcntl.flock(os.open({str(path) + '-lock'!r}, os.O_RDWR), fcntl.LOCK_EX)"
    code = f"import fcntl, os, sys; {lock}; print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        refused(path, "in use by another process")
        process.communicate()
    run(lambda: opened(path))


def test_one_store_for_two_couriers_of_one_process(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db")

    async def main() -> None:
        async with rdsx.open_node(A, transport=VirtualNetwork(1)) as node, rdsx.open_courier(await node.bind(PORT), store=store):
            with pytest.raises(StoreError, match="open in this process"):
                async with rdsx.open_courier(await node.bind(PORT + 1), store=store):
                    pass

    run(main)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database, however long it may be" * 100)
    refused(text, "damaged")
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE customers (name)")
    refused(other, "something else", "customers")
    refused(tmp_path / "no" / "directory.db", "No such file or directory")
    with pytest.raises(ValueError, match="'fast'"):
        SqliteStore(text, synchronous="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE meta SET value = '9' WHERE key = 'format'", "format 9"),
        ("UPDATE meta SET value = 'x' WHERE key = 'life'", "damaged"),
        ("DELETE FROM meta WHERE key = 'address'", "damaged"),
        ("INSERT INTO sessions VALUES (1, 'no json', x'01', x'01', 1, x'01', x'')", "damaged"),
        ("INSERT INTO sessions VALUES (1, '[\"10.0.0.9\", 1]', 5, x'01', 1, x'01', x'')", "damaged"),
        ("DROP TABLE holders", "damaged"),
    ],
)
def test_a_damaged_store(tmp_path: Path, statement: str, word: str) -> None:
    path = tmp_path / "a.db"
    run(lambda: opened(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    refused(path, word)


def test_a_page_of_garbage(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(lambda: opened(path))
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    refused(path, "damaged")


@pytest.mark.parametrize(("synchronous", "keeps"), [("normal", False), ("full", True)])
def test_after_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: Any, keeps: bool) -> None:
    """Another boot, and no orderly end: the last commits may be missing, unless each was synced."""
    path = tmp_path / "a.db"

    def life() -> int:
        store = SqliteStore(path, synchronous=synchronous)
        found, _ = store.open((A, PORT), len(lives) + 1)
        store._release()  # as a crash
        return found

    lives: list[int] = []
    for boot in ("one", "one", "two"):
        monkeypatch.setattr(store_module, "boot_id", lambda boot=boot: boot)
        lives.append(life())
    assert lives[0] == lives[1]
    assert (lives[2] == lives[1]) is keeps


def test_a_handler_that_commits_ends_the_courier(tmp_path: Path) -> None:
    async def main() -> None:
        network = VirtualNetwork(1)
        async with (
            rdsx.open_node(B, transport=network, config=node_config(1)) as there,
            rdsx.open_node(A, transport=network) as here,
            rdsx.open_courier(await here.bind(PORT), config=CallConfig(seed=1, grace_s=0)) as caller,
        ):
            with pytest.RaisesGroup(StoreError, flatten_subgroups=True):
                async with rdsx.open_courier(await there.bind(PORT), store=SqliteStore(tmp_path / "a.db")) as courier:

                    def commit(call: IncomingCall) -> None:
                        assert call.transaction is not None
                        call.transaction.commit()

                    courier.register(T, commit, durability="transaction")
                    await caller.call((B, PORT), T)

    trio.run(main)
