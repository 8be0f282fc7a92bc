"""Control messages that no transport without RDMA takes on send: what they are, the errno, and words of the error of our own engine."""

from __future__ import annotations

import ctypes
import errno

import rdsx
from rdsx import ancillary as a

# Memory that is there: a kernel looks into it before it comes to what is refused here.
memory = ctypes.create_string_buffer(4096)
HERE = (ctypes.addressof(memory) + 7) // 8 * 8
vectors = ctypes.create_string_buffer(a.pack_vectors([a.IoVec(HERE, 1)] * 1024))
VECTORS = ctypes.addressof(vectors)

ARGS = a.RdmaArgs(1, a.IoVec(0, 100), VECTORS, 1)
ADD = a.FetchAdd(1, HERE, 16, 5)
MAP = a.GetMrArgs(a.IoVec(0, 100))

REFUSED: list[tuple[str, list[tuple[int, int, bytes]], int, list[str]]] = [
    ("unknown", [(rdsx.SOL_RDS, 99, b"")], errno.EINVAL, ["99", "rdsx.ancillary"]),
    ("receive only: status", [a.RdmaStatus(0, 0).control()], errno.EINVAL, ["4"]),
    ("receive only: congestion", [a.CongUpdate(0).control()], errno.EINVAL, ["5"]),
    ("receive only: latency", [a.RxPathLatency(()).control()], errno.EINVAL, ["11"]),
    ("receive only: completion", [a.ZcopyCompletion(()).control()], errno.EINVAL, ["13"]),
    ("args too short", [(rdsx.SOL_RDS, 1, bytes(55))], errno.EINVAL, ["RdmaArgs", "56", "55"]),
    ("args too short before unknown", [(rdsx.SOL_RDS, 99, b""), (rdsx.SOL_RDS, 1, bytes(55))], errno.EINVAL, ["RdmaArgs"]),
    ("too much remote", [a.RdmaArgs(1, a.IoVec(0, 1048577), 0, 1).control()], errno.EMSGSIZE, ["1048577", "1048576"]),
    ("too much remote in sum", [a.RdmaArgs(1, a.IoVec(0, 600000), 0, 1).control()] * 2, errno.EMSGSIZE, ["1200000"]),
    ("too much remote before no vectors", [a.RdmaArgs(1, a.IoVec(0, 1048577), 0, 0).control()], errno.EMSGSIZE, ["1048577"]),
    ("no local vectors", [a.RdmaArgs(1, a.IoVec(0, 1), 0, 0).control()], errno.EINVAL, ["local_count 0"]),
    ("too many local vectors", [a.RdmaArgs(1, a.IoVec(0, 1), 0, 1025).control()], errno.EMSGSIZE, ["1025", "1024"]),
    ("most local vectors", [a.RdmaArgs(1, a.IoVec(0, 1024), VECTORS, 1024).control()], errno.EOPNOTSUPP, ["transport='kernel'"]),
    ("vectors before combinations", [a.RdmaDest(1).control(), a.RdmaArgs(1, a.IoVec(0, 1), 0, 1025).control()], errno.EMSGSIZE, ["1025"]),
    ("cookie and args", [a.RdmaDest(1).control(), ARGS.control()], errno.EINVAL, ["[1, 2]", "not both"]),
    ("map and atomic", [ADD.control(), MAP.control()], errno.EINVAL, ["[3, 6]", "not both"]),
    ("zerocopy and args", [a.ZcopyCookie(1).control(), ARGS.control()], errno.EINVAL, ["not both"]),
    ("combinations before sizes", [(rdsx.SOL_RDS, 2, b""), (rdsx.SOL_RDS, 6, b"")], errno.EINVAL, ["not both"]),
    ("dest too short", [(rdsx.SOL_RDS, 2, bytes(7))], errno.EINVAL, ["RdmaDest", "8", "7"]),
    ("map too short", [(rdsx.SOL_RDS, 3, bytes(31))], errno.EINVAL, ["GetMrArgs", "32", "31"]),
    *((f"atomic {kind} too short", [(rdsx.SOL_RDS, kind, bytes(71))], errno.EINVAL, ["72", "71"]) for kind in (6, 7, 8, 9)),
    ("dest", [a.RdmaDest(0x77).control()], errno.EINVAL, ["0x77", "registered", "get_mr()"]),
    ("two args", [ARGS.control(), ARGS.control()], errno.EINVAL, ["at most one RDMA operation"]),
    ("two atomics", [ADD.control(), a.CompareSwap(1, HERE, 16, 4, 5).control()], errno.EINVAL, ["at most one atomic"]),
    ("misaligned", [a.FetchAdd(1, HERE + 1, 16, 5).control()], errno.EFAULT, ["multiple of 8"]),
    ("zerocopy", [a.ZcopyCookie(1).control()], errno.EINVAL, ["MSG_ZEROCOPY"]),
    ("args", [ARGS.control()], errno.EOPNOTSUPP, ["transport='kernel'"]),
    ("map", [MAP.control()], errno.EOPNOTSUPP, ["transport='kernel'"]),
    ("args and atomic", [ARGS.control(), ADD.control()], errno.EOPNOTSUPP, ["transport='kernel'"]),
]
