"""SqliteStore: a courier's sessions, holders and durable calls in one SQLite file, so that they survive its process.

WAL mode, one writer. With `synchronous="normal"` a crash of the process loses nothing, but a power failure may lose the last commits:
then the courier begins a new life, and its callers are told that it restarted. With "full" it need not. Invariants: one process at a time
has the file, because it holds a lock on a file beside it for as long; that file has the token that the store had when it was last opened or
closed, so that an older copy of the store is known by its token.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rdsx.addresses import SockAddr
from rdsx.calls.errors import StoreError
from rdsx.calls.handlers import IncomingCall, Registration, Reply, reply_of
from rdsx.calls.holder import Holder, HolderState
from rdsx.calls.records import HolderRow, Row, Rows, SessionRow
from rdsx.calls.tables import FORMAT, SCHEMA, WRITERS, read_rows, text_of, write_holder
from rdsx.calls.wire import Code

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SqliteStore", "read_store"]

MAX_TOKENS_BYTES = 64
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SqliteStore:
    """Give it to `open_courier(sock, store=...)`; one courier at a time, always with the same address.

    Args:
        path: the file; it is made if it does not exist. Files with `-wal`, `-shm` and `-lock` behind its name belong to it, and go where
            it goes.
        synchronous: "normal", or "full": every commit survives a power failure, and costs an fsync.
        schema: SQL that makes the application's own tables, for handlers with durability="transaction"; it runs at each opening, so write
            CREATE TABLE IF NOT EXISTS.
    """

    def __init__(self, path: str | os.PathLike[str], *, synchronous: Literal["normal", "full"] = "normal", schema: str = "") -> None:
        if synchronous not in ("normal", "full"):
            raise ValueError(f"synchronous is 'normal' or 'full', not {synchronous!r}")
        self.path = Path(path)
        self.identity = bytes(16)
        self._synchronous = synchronous
        self._schema = schema
        self._connection: sqlite3.Connection | None = None
        self._lock_fd = -1

    # -- called by the courier, in a thread

    def open(self, address: SockAddr, new_life: int) -> tuple[int, Rows]:
        """Lock and read the file; returns the life to live, and what is in it. Raises StoreError."""
        import sqlite3

        if self._connection is not None:
            raise StoreError(f"{self.path} is open in this process already: a store is for one courier at a time")
        self._lock()
        try:
            connection = self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                return self._load(connection, address, new_life)
            except (sqlite3.DatabaseError, ValueError, KeyError, TypeError, OverflowError) as error:
                text = f"{self.path} is damaged, or no store of calls ({error}); restore it or begin with a new file"
                raise StoreError(text) from error
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """An orderly end: the next opening goes on with the same life. May be called twice."""
        if self._connection is not None:
            self._connection.execute("PRAGMA synchronous=FULL")
            self._set_meta("clean", "yes")
            self._change_token()
        self._release()

    def write(
        self, changes: dict[tuple[type[Row], object], Row | None], next_session: int, inside: list[tuple[Holder, Registration]]
    ) -> list[tuple[Holder, Code, Reply, str]]:
        """One transaction: the changes, and the handlers that run within it; returns their results."""
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            for (table, key), row in changes.items():
                WRITERS[table](connection, key, row)
            if any(table is SessionRow for table, _ in changes):
                self._set_meta("next_session", str(next_session))
            results = [self._run_inside(connection, holder, registration) for holder, registration in inside]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results

    # -- opening

    def _lock(self) -> None:
        try:
            self._lock_fd = os.open(f"{self.path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; give a path in a directory that exists and may be written") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise StoreError(f"{self.path} is in use by another process; stop it, or give each courier a store of its own") from None

    def _release(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):  # it was damaged, and that was said
                self._connection.close()
            self._connection = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _load(self, connection: sqlite3.Connection, address: SockAddr, new_life: int) -> tuple[int, Rows]:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreError(f"{self.path}: SQLite cannot use WAL mode here ({mode}); put the file on a local file system")
        connection.execute("PRAGMA synchronous=FULL")  # that the file is in use must survive what the commits may not
        (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if problem != "ok":
            raise StoreError(f"{self.path} is damaged: {problem}; restore it or begin with a new file")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "meta" not in tables:
            if tables:
                raise StoreError(f"{self.path} is a database of something else (it has a table {min(tables)}); give a path of its own")
            self._create(connection, address, new_life)
        life = self._check_meta(connection, address, new_life)
        self._change_token()
        connection.execute(f"PRAGMA synchronous={self._synchronous.upper()}")
        if self._schema:
            connection.executescript(self._schema)
        return life, read_rows(connection)

    def _create(self, connection: sqlite3.Connection, address: SockAddr, life: int) -> None:
        connection.executescript("BEGIN IMMEDIATE;" + SCHEMA)
        for key, value in {
            "format": str(FORMAT), "life": str(life), "identity": os.urandom(16).hex(), "address": text_of(address), "clean": "yes",
            "boot": "", "next_session": "1", "token": "",
        }.items():  # fmt: skip
            self._set_meta(key, value)
        connection.execute("COMMIT")

    def _check_meta(self, connection: sqlite3.Connection, address: SockAddr, new_life: int) -> int:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        if meta["format"] != str(FORMAT):
            raise StoreError(f"{self.path} has format {meta['format']}, this version of rdsx reads {FORMAT}; begin with a new file")
        if meta["address"] != text_of(address):
            text = f"{self.path} is the store of the courier at {meta['address']}, not {text_of(address)}; give each courier its own"
            raise StoreError(text)
        self._check_token(meta["token"])
        life = int(meta["life"])
        boot = boot_id()
        if self._synchronous == "normal" and meta["clean"] != "yes" and meta["boot"] != boot:
            life = new_life  # the last commits of before the power failure may be missing: nobody may rely on them
            connection.executescript("DELETE FROM sessions; DELETE FROM holders; DELETE FROM outgoing; DELETE FROM calls;")
            self._set_meta("life", str(life))
        self.identity = bytes.fromhex(meta["identity"])
        self._set_meta("boot", boot)
        self._set_meta("clean", "no")
        return life

    # -- the token: by which an older copy is known

    def _check_token(self, token: str) -> None:
        known = os.pread(self._lock_fd, MAX_TOKENS_BYTES, 0).decode(errors="replace").split()
        if token in ("", *known):
            return
        if known:
            found = f"is an older copy of the store that was last used here, by {self.path}-lock"
        else:
            found = f"may be a copy that was restored: {self.path}-lock, which belongs to it, is not there or empty"
        raise StoreError(f"{self.path} {found}; calls that it does not know of could run again: begin with a new file")

    def _change_token(self) -> None:
        """After a crash at any moment the file has the token of the store, and none of an older copy but perhaps the last one."""
        assert self._connection is not None
        ((old,),) = self._connection.execute("SELECT value FROM meta WHERE key = 'token'")
        new = os.urandom(8).hex()
        self._write_tokens(old, new)
        self._set_meta("token", new)
        self._write_tokens(new)

    def _write_tokens(self, *tokens: str) -> None:
        data = " ".join(tokens).encode()
        os.pwrite(self._lock_fd, data.ljust(MAX_TOKENS_BYTES), 0)
        os.fsync(self._lock_fd)

    def _set_meta(self, key: str, value: str) -> None:
        assert self._connection is not None
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- handlers within a transaction

    def _run_inside(self, connection: sqlite3.Connection, holder: Holder, registration: Registration) -> tuple[Holder, Code, Reply, str]:
        """Run a handler whose effects are committed together with its result, or not at all."""
        call = IncomingCall(holder, connection)
        code, reply, text = Code.OK, Reply(), ""
        connection.execute("SAVEPOINT handler")
        try:
            result: Any = registration.function(call)
            reply = reply_of(result)
            if not connection.in_transaction:
                raise RuntimeError("the handler has committed its transaction itself")
        except Exception as error:
            code, text = Code.HANDLER_FAILED, f"{type(error).__name__}: {error}"
            if not connection.in_transaction:
                raise StoreError(
                    f"a handler of type {holder.msg_type:#x} has ended the store's transaction: never commit or roll back"
                ) from error
            connection.execute("ROLLBACK TO handler")
        connection.execute("RELEASE handler")
        row = HolderRow(
            holder.session.number, holder.seq, int(HolderState.DONE), holder.msg_type, holder.length, holder.crc, code, reply.status, text,
            reply.payload,
        )  # fmt: skip
        write_holder(connection, (row.session, row.seq), row)
        return holder, code, reply, text


def read_store(path: str | os.PathLike[str]) -> tuple[dict[str, str], Rows]:
    """What a store says of its courier, and all of its rows. Changes nothing, and does not mind a courier that has it open.

    Raises StoreError: it is not there, no store, damaged, or of another format.
    """
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("BEGIN")  # one state of it, also while a courier writes
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            if meta["format"] != str(FORMAT):
                raise StoreError(f"{path} has format {meta['format']}, this version of rdsx reads {FORMAT}")
            return meta, read_rows(connection)
    except (sqlite3.Error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreError(f"{path} cannot be read, or is no store of calls: {error}") from error


def boot_id() -> str:
    """By which boots of this machine are told apart; "" where the system does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
