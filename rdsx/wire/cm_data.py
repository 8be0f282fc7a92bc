"""What two ends of an RDS connection over InfiniBand tell each other while the RDMA CM connects them: the CM's private data.

The same structure travels with the request and with the reply. Wire (big-endian; `net/rds/ib.h` of Linux 6.1):

    sender 4 or 16, receiver 4 or 16, major:1 minor:1 minor_mask:2 tos:1 reserved:1 fragment:2 ack_seq:8 credit:4 zero:4

32 bytes with IPv4 addresses, 56 with IPv6 ones. Nothing in it tells which; the port does that the request came to. The CM shows its
receiver a zero-padded maximum (56, 196 and 148 bytes of request, reply and reject), so that data that was not sent looks like zeros.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import TypeAlias

from rdsx.errors import WireError

__all__ = [
    "PACKED_FRAGMENT_BYTES",
    "PORT_IPV4",
    "PORT_IPV6",
    "PROPOSED",
    "REJECT_DATA",
    "CmData",
    "Version",
    "accepted_version",
    "agreed_version",
    "pack_cm_data",
    "parse_cm_data_untrusted",
]

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Version: TypeAlias = tuple[int, int]

COMMON = struct.Struct(">BBHBxHQI")  # without the four bytes of padding at the end, which need not be there
PADDING = bytes(4)
MINORS = 0x0003  # the minor versions we speak, as a mask: 0 and 1, which do not differ on the wire
PORT_IPV4 = 18634  # where everybody listens, in the port space of RDMA_PS_TCP
PORT_IPV6 = 16385
PROPOSED: Version = (3, 1)
OLDEST: Version = (3, 1)
NEWEST_MAJOR = 4
UNSAID: Version = (4, 1)  # what a connector assumes when the reply does not say

PACKED_FRAGMENT_BYTES = 16336
"""As a fragment size: packed frames, docs/verbs-rings.md. Nobody but rdsx says this. Oracle's kernels know 4096, 8192 and 16384, and take
anything else for 4096; Linux does not look."""

REJECT_DATA = b""
"""What a refusal carries. A kernel reads a number in the *rejecting* host's byte order from it, and ignores the refusal if that is above
1: its path then stays CONNECTING for ever, and refuses every connection from us. No data is read as 0 on hosts of every order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CmData:
    """One end's private data.

    `ack_seq`: the last sequence number it has received. `credit`: sends it grants, 0: no credits are counted. `fragment_bytes`: payload of
    a frame that it would take, 0: 4096.
    """

    sender: IpAddress
    receiver: IpAddress
    version: Version = PROPOSED
    minor_mask: int = MINORS
    tos: int = 0
    fragment_bytes: int = 0
    ack_seq: int = 0
    credit: int = 0

    @property
    def is_empty(self) -> bool:
        """Nothing was sent: a major version of 0 exists in no other way."""
        return self.version[0] == 0


def pack_cm_data(data: CmData) -> bytes:
    """32 or 56 bytes. Both addresses must be of one family."""
    major, minor = data.version
    addresses = data.sender.packed + data.receiver.packed
    return addresses + COMMON.pack(major, minor, data.minor_mask, data.tos, data.fragment_bytes, data.ack_seq, data.credit) + PADDING


def parse_cm_data_untrusted(packed: bytes, *, is_ipv6: bool) -> CmData:
    """A peer's private data. WireError `bad_private_data` if it is too short; bytes behind it are padding. Versions are not judged here."""
    width = 16 if is_ipv6 else 4
    if len(packed) < 2 * width + COMMON.size:
        raise WireError("bad_private_data", f"{len(packed)} bytes of private data, at least {2 * width + COMMON.size} are needed")
    major, minor, mask, tos, fragment_bytes, ack_seq, credit = COMMON.unpack_from(packed, 2 * width)
    address = ipaddress.IPv6Address if is_ipv6 else ipaddress.IPv4Address
    return CmData(
        sender=address(packed[:width]),
        receiver=address(packed[width : 2 * width]),
        version=(major, minor),
        minor_mask=mask,
        tos=tos,
        fragment_bytes=fragment_bytes,
        ack_seq=ack_seq,
        credit=credit,
    )


def agreed_version(request: CmData) -> Version:
    """What an acceptor answers to a request, as a kernel does. WireError `bad_version` for one that is to be refused.

    No data at all: 4.0. Major 4: the highest minor version that both have. Else exactly 3.1.
    """
    major, minor = request.version
    common = request.minor_mask & MINORS
    if request.is_empty:
        return 4, 0
    if major == NEWEST_MAJOR and common:
        return 4, common.bit_length() - 1
    if request.version == PROPOSED:
        return PROPOSED
    raise WireError(
        "bad_version",
        f"the peer proposes version {major}.{minor} with minor versions {request.minor_mask:#06x}; 3.1, 4.0 and 4.1 are known",
    )


def accepted_version(reply: CmData) -> Version:
    """What a connector takes from a reply. WireError `bad_version` for one it cannot speak.

    A kernel takes anything from 3.1 up; a version that does not exist is refused here, because nobody knows its wire.
    """
    if reply.is_empty:
        return UNSAID
    if reply.version < OLDEST or reply.version[0] > NEWEST_MAJOR:
        raise WireError("bad_version", f"the peer answers with version {reply.version[0]}.{reply.version[1]}; 3.1, 4.0 and 4.1 are known")
    return reply.version
