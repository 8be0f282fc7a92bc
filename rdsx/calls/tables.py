"""The tables of a store: how rows are written into a SQLite file, and read from it. Commits nothing, and knows no file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rdsx.addresses import SockAddr
from rdsx.calls.records import CallRow, HolderRow, OutgoingRow, Row, Rows, SessionRow

if TYPE_CHECKING:
    import sqlite3

__all__ = ["FORMAT", "SCHEMA", "WRITERS", "read_rows", "text_of", "write_holder"]

FORMAT = 2
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, address TEXT NOT NULL, caller_life BLOB NOT NULL, nonce BLOB NOT NULL, state INTEGER NOT NULL,
    floor BLOB NOT NULL, released BLOB NOT NULL);
CREATE TABLE holders (
    session INTEGER NOT NULL, seq BLOB NOT NULL, state INTEGER NOT NULL, msg_type INTEGER NOT NULL, length INTEGER NOT NULL,
    crc INTEGER NOT NULL, code INTEGER NOT NULL, status INTEGER NOT NULL, text TEXT NOT NULL, reply BLOB NOT NULL,
    PRIMARY KEY (session, seq)) WITHOUT ROWID;
CREATE TABLE outgoing (
    address TEXT PRIMARY KEY, life BLOB NOT NULL, session INTEGER NOT NULL, win INTEGER NOT NULL, max_payload INTEGER NOT NULL,
    reserved BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE calls (
    number INTEGER PRIMARY KEY, address TEXT NOT NULL, seq BLOB NOT NULL, msg_type INTEGER NOT NULL, payload BLOB NOT NULL);
"""


def read_rows(connection: sqlite3.Connection) -> Rows:
    """Everything. Raises what sqlite3 and the parsing of damaged values raise."""
    rows = Rows()
    for number, address, caller_life, nonce, state, floor, released in connection.execute("SELECT * FROM sessions"):
        rows.sessions.append(
            SessionRow(number, address_of(address), number_of(caller_life), number_of(nonce), state, number_of(floor), number_of(released))
        )
    for session, seq, *rest in connection.execute("SELECT * FROM holders"):
        rows.holders.append(HolderRow(session, number_of(seq), *rest))
    for address, life, session, window, max_payload, reserved in connection.execute("SELECT * FROM outgoing"):
        rows.outgoing.append(OutgoingRow(address_of(address), number_of(life), session, window, max_payload, number_of(reserved)))
    known = {row.address for row in rows.outgoing}
    for number, address, seq, msg_type, payload in connection.execute("SELECT * FROM calls"):
        call = CallRow(number, address_of(address), number_of(seq), msg_type, payload)
        if call.seq and call.address not in known:
            raise ValueError(f"call {number} is of a session that is not there")
        rows.calls.append(call)
    (value,) = connection.execute("SELECT value FROM meta WHERE key = 'next_session'").fetchone()
    rows.next_session = int(value)
    return rows


def write_session(connection: sqlite3.Connection, key: object, row: Row | None) -> None:
    if row is None:
        connection.execute("DELETE FROM sessions WHERE number = ?", (key,))
        connection.execute("DELETE FROM holders WHERE session = ?", (key,))
        return
    assert isinstance(row, SessionRow)
    released = row.released.to_bytes((row.released.bit_length() + 7) // 8, "big")
    connection.execute(
        "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row.number, text_of(row.address), blob_of(row.caller_life), blob_of(row.nonce), row.state, blob_of(row.floor), released),
    )


def write_holder(connection: sqlite3.Connection, key: object, row: Row | None) -> None:
    if row is None:
        assert isinstance(key, tuple)
        connection.execute("DELETE FROM holders WHERE session = ? AND seq = ?", (key[0], blob_of(key[1])))
        return
    assert isinstance(row, HolderRow)
    connection.execute("INSERT OR REPLACE INTO holders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (row.session, blob_of(row.seq), *row[2:]))


def write_outgoing(connection: sqlite3.Connection, key: object, row: Row | None) -> None:
    if row is None:
        assert isinstance(key, tuple)
        connection.execute("DELETE FROM outgoing WHERE address = ?", (text_of(key),))
        return
    assert isinstance(row, OutgoingRow)
    connection.execute(
        "INSERT OR REPLACE INTO outgoing VALUES (?, ?, ?, ?, ?, ?)",
        (text_of(row.address), blob_of(row.life), row.session, row.window, row.max_payload_bytes, blob_of(row.reserved)),
    )


def write_call(connection: sqlite3.Connection, key: object, row: Row | None) -> None:
    if row is None:
        connection.execute("DELETE FROM calls WHERE number = ?", (key,))
        return
    assert isinstance(row, CallRow)
    connection.execute(
        "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?)",
        (row.number, text_of(row.address), blob_of(row.seq), row.msg_type, row.payload),
    )


WRITERS = {SessionRow: write_session, HolderRow: write_holder, OutgoingRow: write_outgoing, CallRow: write_call}


def blob_of(number: int) -> bytes:
    """Numbers of 64 bits do not fit into SQLite's signed integers. Big-endian, so that they sort."""
    return number.to_bytes(8, "big")


def number_of(blob: bytes) -> int:
    if not isinstance(blob, bytes):
        raise TypeError(f"a number is stored as {type(blob).__name__}")
    return int.from_bytes(blob, "big")


def text_of(address: SockAddr) -> str:
    return json.dumps(address)


def address_of(text: str) -> SockAddr:
    return tuple(json.loads(text))
