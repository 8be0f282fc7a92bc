"""The contract of `_bridge` as Python sees it. Addresses of C structures are ints; a struct sockaddr is bytes."""

from typing import final

EVENTS: tuple[str, ...]
QP_EVENTS: tuple[int, ...]

@final
class Unsupported(Exception):
    """This pyverbs, or this rdma-core, is not laid out as the ones that are known."""

def context_pointer(context: object) -> tuple[int, int]:
    """(address of the ibv_context, descriptor of its asynchronous events) of a pyverbs Context."""

def pd_pointer(pd: object, context: int) -> int:
    """The address of the ibv_pd of a pyverbs PD on the device of that address."""

def comp_channel_pointer(channel: object) -> tuple[int, int]:
    """(address of the ibv_comp_channel, its descriptor) of a pyverbs CompChannel."""

def cq_pointer(cq: object, channel: int) -> int:
    """The address of the ibv_cq of a pyverbs CQ made with the completion channel of that address."""

def qp_pointer(qp: object, send_cq: int, recv_cq: int) -> int:
    """The address of the ibv_qp of a pyverbs QP made with these completion queues."""

def event_channel_pointer(channel: object) -> tuple[int, int]:
    """(address of the rdma_event_channel, its descriptor) of a pyverbs CMEventChannel."""

def cm_id_pointer(cmid: object, channel: int) -> int:
    """The address of the rdma_cm_id of a pyverbs CMID on the event channel of that address."""

def read_cm_event(event: object) -> tuple[str, int, int, int, bytes, int, int]:
    """A pyverbs CMEvent as (kind, id, id of the listener or 0, status, private data, responder resources, initiator depth)."""

def take_async_event(context: int) -> tuple[int, int, int] | None:
    """The next asynchronous event of a device as (type, address of the ibv_qp or 0, port or 0); None if there is none."""

def register_memory(pd: int, address: int, length: int, start: int, access: int) -> tuple[int, int, int]:
    """Pin memory, whose first byte has the number `start` for peers: (address of the ibv_mr, lkey, rkey). Other threads run meanwhile."""

def register_dmabuf(pd: int, fd: int, offset: int, length: int, start: int, access: int) -> tuple[int, int, int]:
    """The same for memory behind a dma-buf, from `offset` on."""

def deregister_memory(region: int) -> None:
    """Unpin it. Its keys are worth nothing from now on, and the address is gone."""

def cq_event_functions() -> tuple[int, int]:
    """Addresses of ibv_get_cq_event and ibv_ack_cq_events, which the rings call."""

def bind_addr(id: int, address: bytes) -> None:
    """Bind to a struct sockaddr; the wildcard address is allowed."""

def resolve_addr(id: int, source: bytes, destination: bytes, timeout_ms: int) -> None:
    """Begin to find the device that leads there. Ends in ADDR_RESOLVED or ADDR_ERROR."""

def resolve_route(id: int, timeout_ms: int) -> None:
    """Begin to find the path through the fabric. Ends in ROUTE_RESOLVED or ROUTE_ERROR."""

def listen(id: int, backlog: int) -> None:
    """Take requests: each comes as CONNECT_REQUEST."""

def connect(
    id: int, private_data: bytes, *, qp_num: int, responder_resources: int, initiator_depth: int, retry_count: int, rnr_retry_count: int
) -> None:
    """Ask the other end for a connection. Ends in CONNECT_RESPONSE, REJECTED, UNREACHABLE or CONNECT_ERROR."""

def accept(id: int, private_data: bytes, *, qp_num: int, responder_resources: int, initiator_depth: int, rnr_retry_count: int) -> None:
    """Grant a request. Ends in ESTABLISHED, or otherwise if the other end has given up."""

def reject(id: int, private_data: bytes) -> None:
    """Refuse a request."""

def establish(id: int) -> None:
    """Tell the other end that its answer has come: it gets ESTABLISHED."""

def disconnect(id: int) -> None:
    """End a connection: the other end gets DISCONNECTED. The queue pair stays as it is."""

def notify_established(id: int) -> None:
    """A message has come before the CM knew that the connection is up: tell it."""

def set_tos(id: int, tos: int) -> None:
    """Set the type of service. Call it before resolve_addr()."""

def addresses(id: int) -> tuple[bytes, bytes]:
    """(local, remote) as struct sockaddr; of a request, or after ADDR_RESOLVED."""

def device_name(id: int) -> str | None:
    """The name of the device an identifier is bound to, None while it is bound to none."""
