"""Numbers of the RDS socket interface under their kernel names (include/uapi/linux/rds.h, 6.1)."""

from __future__ import annotations

from typing import Final

AF_RDS: Final = 21
PF_RDS: Final = 21
SOL_RDS: Final = 276

# Socket options at level SOL_RDS.
RDS_CANCEL_SENT_TO: Final = 1
RDS_GET_MR: Final = 2
RDS_FREE_MR: Final = 3
RDS_RECVERR: Final = 5
RDS_CONG_MONITOR: Final = 6
RDS_GET_MR_FOR_DEST: Final = 7
SO_RDS_TRANSPORT: Final = 8
SO_RDS_MSG_RXPATH_LATENCY: Final = 10

# Control messages at level SOL_RDS.
RDS_CMSG_RDMA_ARGS: Final = 1
RDS_CMSG_RDMA_DEST: Final = 2
RDS_CMSG_RDMA_MAP: Final = 3
RDS_CMSG_RDMA_STATUS: Final = 4
RDS_CMSG_CONG_UPDATE: Final = 5
RDS_CMSG_ATOMIC_FADD: Final = 6
RDS_CMSG_ATOMIC_CSWP: Final = 7
RDS_CMSG_MASKED_ATOMIC_FADD: Final = 8
RDS_CMSG_MASKED_ATOMIC_CSWP: Final = 9
RDS_CMSG_RXPATH_LATENCY: Final = 11
RDS_CMSG_ZCOPY_COOKIE: Final = 12
RDS_CMSG_ZCOPY_COMPLETION: Final = 13

# Values of SO_RDS_TRANSPORT.
RDS_TRANS_IB: Final = 0
RDS_TRANS_GAP: Final = 1
RDS_TRANS_TCP: Final = 2
RDS_TRANS_LOOP: Final = 3
RDS_TRANS_NONE: Final = -1

# Flags of the RDMA structures.
RDS_RDMA_READWRITE: Final = 0x01
RDS_RDMA_FENCE: Final = 0x02
RDS_RDMA_INVALIDATE: Final = 0x04
RDS_RDMA_USE_ONCE: Final = 0x08
RDS_RDMA_DONTWAIT: Final = 0x10
RDS_RDMA_NOTIFY_ME: Final = 0x20
RDS_RDMA_SILENT: Final = 0x40

# Status of an RDMA notification.
RDS_RDMA_SUCCESS: Final = 0
RDS_RDMA_REMOTE_ERROR: Final = 1
RDS_RDMA_CANCELED: Final = 2
RDS_RDMA_DROPPED: Final = 3
RDS_RDMA_OTHER_ERROR: Final = 4

RDS_TCP_PORT: Final = 16385
RDS_MAX_MSG_SIZE: Final = 1048576
RDS_PING_PORT: Final = 0
RDS_FLAG_PROBE_PORT: Final = 1
