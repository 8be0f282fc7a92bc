"""Reliable Datagram Sockets in user space, for trio."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    from rdsx import _fast, _pace, _stream  # noqa: F401  to say below, and once, what to do when they are missing
except ImportError as error:
    raise ImportError(
        f"rdsx's compiled modules cannot be loaded ({error}). From a checkout, build them: python -m pip install . (needs a C compiler); "
        "and do not run Python from inside the checkout unless it was installed with pip install -e ."
    ) from error

from rdsx import ancillary, constants, errors
from rdsx.config import NodeConfig
from rdsx.constants import *  # noqa: F403  re-exported under their kernel names
from rdsx.engine.events import CongestionChanged, Event, PeerDown, PeerRestarted, PeerUp
from rdsx.errors import CongestedError, MessageTooLongError, NotBoundError, RdsError, TooManyPeersError, UnsupportedError
from rdsx.memory import DmaBuf
from rdsx.node import Node, open_node
from rdsx.operations import RdmaOperation, RdmaOutcome
from rdsx.sockets import RdsSocket
from rdsx.statistics import ConnectionStatistics, NodeStatistics, SocketStatistics
from rdsx.wire.info import ConnectionInfo, IbConnectionInfo, Info, MessageInfo, SocketInfo, TcpSocketInfo

from rdsx import calls  # isort: skip  it stands on the names above
from rdsx.calls import open_courier  # isort: skip

try:
    __version__ = version("rdsx")
except PackageNotFoundError:
    __version__ = "0+uninstalled"

del PackageNotFoundError, version

__all__ = [
    "CongestedError",
    "CongestionChanged",
    "ConnectionInfo",
    "ConnectionStatistics",
    "DmaBuf",
    "Event",
    "IbConnectionInfo",
    "Info",
    "MessageInfo",
    "MessageTooLongError",
    "Node",
    "NodeConfig",
    "NodeStatistics",
    "NotBoundError",
    "PeerDown",
    "PeerRestarted",
    "PeerUp",
    "RdmaOperation",
    "RdmaOutcome",
    "RdsError",
    "RdsSocket",
    "SocketInfo",
    "SocketStatistics",
    "TcpSocketInfo",
    "TooManyPeersError",
    "UnsupportedError",
    "__version__",
    "ancillary",
    "calls",
    "errors",
    "open_courier",
    "open_node",
]
__all__ += constants.__all__
