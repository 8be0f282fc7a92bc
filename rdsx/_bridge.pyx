"""Between pyverbs and the C structures under it: validated pointers, and the calls of librdmacm that pyverbs has not or gets wrong.

pyverbs owns every verbs object but the regions of users' memory, which it cannot register as RDS counts in them; their owner gives them
back. For the rings this module takes numbers out of pyverbs' objects. It links no library of rdma-core: functions are looked up in the
libraries that pyverbs has loaded, structures come from the headers, whose layout is frozen.

Where a pointer lies in a pyverbs object follows from Cython's layout: the base class first, then a slot for the table of C methods
if this class is the first to have them, then the fields in order. Nothing promises that, so every pointer is proved before it is used: the
kernel is asked whether the memory can be read, and what lies there must equal what the object's public properties say. Invariant:
an object that fails this is refused with Unsupported; nothing is ever read at an address that was not proved.
"""

import errno
import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset


cdef extern from "dlfcn.h" nogil:
    enum:
        RTLD_NOW
    void* dlopen(const char* name, int flags)
    void* dlvsym(void* library, const char* name, const char* version)


cdef extern from "unistd.h" nogil:
    int pipe2(int* ends, int flags)
    ssize_t write(int fd, const void* data, size_t size)
    int close(int fd)


cdef extern from "fcntl.h" nogil:
    enum:
        O_CLOEXEC


cdef extern from "sys/socket.h" nogil:
    enum:
        AF_INET
        AF_INET6
    struct sockaddr:
        unsigned short sa_family


cdef extern from "netinet/in.h" nogil:
    struct sockaddr_in:
        pass
    struct sockaddr_in6:
        pass


cdef extern from "infiniband/verbs.h" nogil:
    struct ibv_device:
        char name[64]
    struct ibv_context:
        ibv_device* device
        int cmd_fd
        int async_fd
        int num_comp_vectors
    struct ibv_pd:
        ibv_context* context
    struct ibv_mr:
        uint32_t lkey
        uint32_t rkey
    struct ibv_comp_channel:
        ibv_context* context
        int fd
    struct ibv_cq:
        ibv_context* context
        ibv_comp_channel* channel
        int cqe
    struct ibv_qp:
        ibv_context* context
        ibv_cq* send_cq
        ibv_cq* recv_cq
        uint32_t qp_num
        int qp_type
    enum ibv_event_type:
        IBV_EVENT_QP_FATAL
        IBV_EVENT_QP_REQ_ERR
        IBV_EVENT_QP_ACCESS_ERR
        IBV_EVENT_COMM_EST
        IBV_EVENT_SQ_DRAINED
        IBV_EVENT_PATH_MIG
        IBV_EVENT_PATH_MIG_ERR
        IBV_EVENT_QP_LAST_WQE_REACHED


cdef extern from "rdma/rdma_cma.h" nogil:
    """
    #define event_qp(event) ((event)->element.qp)
    #define event_port(event) ((event)->element.port_num)
    #define source_of(id) (&(id)->route.addr.src_addr)
    #define destination_of(id) (&(id)->route.addr.dst_addr)
    #define connection_of(event) ((event)->param.conn)
    """
    struct ibv_async_event:
        ibv_event_type event_type
    ibv_qp* event_qp(ibv_async_event* event)
    int event_port(ibv_async_event* event)

    enum: RDMA_OPTION_ID
    enum: RDMA_OPTION_ID_TOS
    enum rdma_cm_event_type:
        RDMA_CM_EVENT_TIMEWAIT_EXIT
    struct rdma_event_channel:
        int fd
    struct rdma_cm_id:
        ibv_context* verbs
        rdma_event_channel* channel
        uint8_t port_num
    struct rdma_conn_param:
        const void* private_data
        uint8_t private_data_len
        uint8_t responder_resources
        uint8_t initiator_depth
        uint8_t flow_control
        uint8_t retry_count
        uint8_t rnr_retry_count
        uint8_t srq
        uint32_t qp_num
    struct rdma_cm_event:
        rdma_cm_id* id
        rdma_cm_id* listen_id
        rdma_cm_event_type event
        int status
    sockaddr* source_of(rdma_cm_id* id)
    sockaddr* destination_of(rdma_cm_id* id)
    rdma_conn_param connection_of(rdma_cm_event* event)


ctypedef int (*address_call)(rdma_cm_id*, sockaddr*) noexcept nogil
ctypedef int (*resolve_call)(rdma_cm_id*, sockaddr*, sockaddr*, int) noexcept nogil
ctypedef int (*number_call)(rdma_cm_id*, int) noexcept nogil
ctypedef int (*connect_call)(rdma_cm_id*, rdma_conn_param*) noexcept nogil
ctypedef int (*reject_call)(rdma_cm_id*, const void*, uint8_t) noexcept nogil
ctypedef int (*plain_call)(rdma_cm_id*) noexcept nogil
ctypedef int (*option_call)(rdma_cm_id*, int, int, void*, size_t) noexcept nogil
ctypedef int (*get_async_call)(ibv_context*, ibv_async_event*) noexcept nogil
ctypedef void (*ack_async_call)(ibv_async_event*) noexcept nogil
ctypedef ibv_mr* (*register_call)(ibv_pd*, void*, size_t, uint64_t, unsigned int) noexcept nogil
ctypedef ibv_mr* (*register_dmabuf_call)(ibv_pd*, uint64_t, size_t, uint64_t, int, int) noexcept nogil
ctypedef int (*deregister_call)(ibv_mr*) noexcept nogil


# In the order of enum rdma_cm_event_type.
EVENTS = (
    "ADDR_RESOLVED", "ADDR_ERROR", "ROUTE_RESOLVED", "ROUTE_ERROR", "CONNECT_REQUEST", "CONNECT_RESPONSE", "CONNECT_ERROR", "UNREACHABLE",
    "REJECTED", "ESTABLISHED", "DISCONNECTED", "DEVICE_REMOVAL", "MULTICAST_JOIN", "MULTICAST_ERROR", "ADDR_CHANGE", "TIMEWAIT_EXIT",
)

QP_EVENTS = (
    IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR, IBV_EVENT_QP_ACCESS_ERR, IBV_EVENT_COMM_EST, IBV_EVENT_SQ_DRAINED, IBV_EVENT_PATH_MIG,
    IBV_EVENT_PATH_MIG_ERR, IBV_EVENT_QP_LAST_WQE_REACHED,
)


class Unsupported(Exception):
    """This pyverbs, or this rdma-core, is not laid out as the ones that are known."""


# -- functions of the libraries

cdef dict functions = {}


cdef void* function(str name, str version) except NULL:
    """The address of a function of librdmacm or libibverbs."""
    cdef void* library
    cdef void* found
    if name in functions:
        return <void*><uintptr_t>functions[name]
    file_name = b"librdmacm.so.1" if name.startswith("rdma_") else b"libibverbs.so.1"
    library = dlopen(file_name, RTLD_NOW)
    found = dlvsym(library, name.encode(), version.encode()) if library != NULL else NULL
    if found == NULL:
        raise Unsupported(f"{file_name.decode()} has no {name} of version {version}")
    functions[name] = <uintptr_t>found
    return found


cdef int check(int result) except -1:
    """0, or the OSError that errno says."""
    if result:
        raise OSError(c_errno, os.strerror(c_errno))
    return 0


# -- pointers


cdef void* pointer_in(object wrapper, str name, size_t size) except NULL:
    """The pointer that an object of pyverbs' class `name` holds, to readable memory of `size` bytes."""
    cdef Py_ssize_t offset
    cdef void* pointer = NULL
    found = [cls for cls in type(wrapper).__mro__ if cls.__name__ == name and cls.__module__.startswith("pyverbs.")]
    if not found:
        raise TypeError(f"a {name} of pyverbs is needed, not {type(wrapper).__name__}")
    cls = found[0]
    base = cls.__base__
    offset = base.__basicsize__
    if "__pyx_vtable__" in cls.__dict__ and "__pyx_vtable__" not in base.__dict__:
        offset += sizeof(void*)
    if offset % sizeof(void*) or offset + <Py_ssize_t>sizeof(void*) > cls.__basicsize__:
        raise Unsupported(f"pyverbs' {name} has no room for a pointer: {cls.__basicsize__} bytes over {base.__basicsize__}")
    memcpy(&pointer, <char*><void*>wrapper + offset, sizeof(void*))
    if pointer == NULL:
        raise OSError(errno.EBADF, f"this {name} is closed")
    if <uintptr_t>pointer % sizeof(void*) or not is_readable(pointer, size):
        raise Unsupported(f"pyverbs' {name} is laid out in a way that is not known")
    return pointer


cdef bint is_readable(const void* memory, size_t size) except -1:
    """Asked of the kernel, because a wrong guess would be the end of the process: write() says EFAULT where we would be killed."""
    cdef int ends[2]
    cdef ssize_t written
    check(pipe2(ends, O_CLOEXEC))
    written = write(ends[1], memory, size)
    close(ends[0])
    close(ends[1])
    return written == <ssize_t>size


cdef int prove(bint proved, str name) except -1:
    if not proved:
        raise Unsupported(f"what is found where pyverbs' {name} should keep its pointer is no {name}")
    return 0


cdef bint is_file(int fd, str name) except -1:
    """Whether a descriptor is of the file that /proc calls so."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").endswith(name)
    except OSError:
        return False


def context_pointer(context):
    """(address of the ibv_context, descriptor of its asynchronous events) of a pyverbs Context."""
    cdef ibv_context* pointer = <ibv_context*>pointer_in(context, "Context", sizeof(ibv_context))
    prove(pointer.cmd_fd == context.cmd_fd and pointer.num_comp_vectors == context.num_comp_vectors, "Context")
    prove(is_file(pointer.async_fd, "[infinibandevent]"), "Context")
    return <uintptr_t>pointer, pointer.async_fd


def pd_pointer(pd, uintptr_t context):
    """The address of the ibv_pd of a pyverbs PD on the device of that address."""
    cdef ibv_pd* pointer = <ibv_pd*>pointer_in(pd, "PD", sizeof(ibv_pd))
    prove(<uintptr_t>pointer.context == context, "PD")
    return <uintptr_t>pointer


def comp_channel_pointer(channel):
    """(address of the ibv_comp_channel, its descriptor) of a pyverbs CompChannel."""
    cdef ibv_comp_channel* pointer = <ibv_comp_channel*>pointer_in(channel, "CompChannel", sizeof(ibv_comp_channel))
    prove(is_file(pointer.fd, "[infinibandevent]"), "CompChannel")
    return <uintptr_t>pointer, pointer.fd


def cq_pointer(cq, uintptr_t channel):
    """The address of the ibv_cq of a pyverbs CQ made with the completion channel of that address."""
    cdef ibv_cq* pointer = <ibv_cq*>pointer_in(cq, "CQ", sizeof(ibv_cq))
    prove(pointer.cqe == cq.cqe and <uintptr_t>pointer.channel == channel, "CQ")
    return <uintptr_t>pointer


def qp_pointer(qp, uintptr_t send_cq, uintptr_t recv_cq):
    """The address of the ibv_qp of a pyverbs QP made with these completion queues."""
    cdef ibv_qp* pointer = <ibv_qp*>pointer_in(qp, "QP", sizeof(ibv_qp))
    prove(pointer.qp_num == qp.qp_num and pointer.qp_type == int(qp.qp_type), "QP")
    prove(<uintptr_t>pointer.send_cq == send_cq and <uintptr_t>pointer.recv_cq == recv_cq, "QP")
    return <uintptr_t>pointer


def event_channel_pointer(channel):
    """(address of the rdma_event_channel, its descriptor) of a pyverbs CMEventChannel."""
    cdef rdma_event_channel* pointer = <rdma_event_channel*>pointer_in(channel, "CMEventChannel", sizeof(rdma_event_channel))
    prove(is_file(pointer.fd, "/infiniband/rdma_cm"), "CMEventChannel")
    return <uintptr_t>pointer, pointer.fd


def cm_id_pointer(cmid, uintptr_t channel):
    """The address of the rdma_cm_id of a pyverbs CMID on the event channel of that address."""
    cdef rdma_cm_id* pointer = <rdma_cm_id*>pointer_in(cmid, "CMID", sizeof(rdma_cm_id))
    prove(<uintptr_t>pointer.channel == channel, "CMID")
    return <uintptr_t>pointer


# -- events


def read_cm_event(event):
    """A pyverbs CMEvent as (kind, id, id of the listener or 0, status, private data, responder resources, initiator depth).

    `kind` is one of EVENTS. Read it before the event is closed, which frees what it points to.
    """
    cdef rdma_cm_event* pointer = <rdma_cm_event*>pointer_in(event, "CMEvent", sizeof(rdma_cm_event))
    cdef rdma_conn_param given
    prove(pointer.event <= RDMA_CM_EVENT_TIMEWAIT_EXIT and pointer.event == int(event.event_type), "CMEvent")
    kind = EVENTS[<int>pointer.event]
    data = b""
    depths = [0, 0]
    if kind in ("CONNECT_REQUEST", "CONNECT_RESPONSE", "ESTABLISHED", "REJECTED"):
        given = connection_of(pointer)
        if given.private_data != NULL:
            data = (<const char*>given.private_data)[: given.private_data_len]
        depths = [given.responder_resources, given.initiator_depth]
    return kind, <uintptr_t>pointer.id, <uintptr_t>pointer.listen_id, pointer.status, data, depths[0], depths[1]


def take_async_event(uintptr_t context):
    """The next asynchronous event of a device as (type, address of the ibv_qp or 0, port or 0); None if there is none.

    The descriptor must be non-blocking. The event is acknowledged at once, so the address is to be compared and not followed.
    """
    cdef get_async_call get = <get_async_call>function("ibv_get_async_event", "IBVERBS_1.1")
    cdef ack_async_call acknowledge = <ack_async_call>function("ibv_ack_async_event", "IBVERBS_1.1")
    cdef ibv_async_event event
    cdef uintptr_t qp = 0
    cdef int port = 0
    memset(&event, 0, sizeof(event))
    if get(<ibv_context*>context, &event):
        if c_errno in (errno.EAGAIN, errno.EINTR):
            return None
        raise OSError(c_errno, os.strerror(c_errno))
    if event.event_type in QP_EVENTS:
        qp = <uintptr_t>event_qp(&event)
    else:
        port = event_port(&event)
    acknowledge(&event)
    return int(event.event_type), qp, port


# -- users' memory


def register_memory(uintptr_t pd, uintptr_t address, size_t length, uint64_t start, unsigned int access):
    """Pin memory, whose first byte has the number `start` for peers: (address of the ibv_mr, lkey, rkey). Other threads run meanwhile."""
    cdef register_call call = <register_call>function("ibv_reg_mr_iova2", "IBVERBS_1.8")
    cdef ibv_mr* region
    with nogil:
        region = call(<ibv_pd*>pd, <void*>address, length, start, access)
    return described(region)


def register_dmabuf(uintptr_t pd, int fd, uint64_t offset, size_t length, uint64_t start, int access):
    """The same for memory behind a dma-buf, from `offset` on."""
    cdef register_dmabuf_call call = <register_dmabuf_call>function("ibv_reg_dmabuf_mr", "IBVERBS_1.12")
    cdef ibv_mr* region
    with nogil:
        region = call(<ibv_pd*>pd, offset, length, start, fd, access)
    return described(region)


cdef tuple described(ibv_mr* region):
    if region == NULL:
        raise OSError(c_errno, os.strerror(c_errno))
    return <uintptr_t>region, region.lkey, region.rkey


def deregister_memory(uintptr_t region):
    """Unpin it. Its keys are worth nothing from now on, and the address is gone."""
    cdef deregister_call call = <deregister_call>function("ibv_dereg_mr", "IBVERBS_1.1")
    cdef int code
    with nogil:
        code = call(<ibv_mr*>region)
    if code:
        raise OSError(code, os.strerror(code))


def cq_event_functions():
    """Addresses of ibv_get_cq_event and ibv_ack_cq_events, which the rings call."""
    return (
        <uintptr_t>function("ibv_get_cq_event", "IBVERBS_1.1"),
        <uintptr_t>function("ibv_ack_cq_events", "IBVERBS_1.1"),
    )


# -- calls on connection identifiers; each raises OSError with the errno of the library


def bind_addr(uintptr_t id, bytes address):
    """Bind to a struct sockaddr; the wildcard address is allowed."""
    cdef address_call call = <address_call>function("rdma_bind_addr", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, whole_address(address)))


def resolve_addr(uintptr_t id, bytes source, bytes destination, int timeout_ms):
    """Begin to find the device that leads there. Ends in ADDR_RESOLVED or ADDR_ERROR."""
    cdef resolve_call call = <resolve_call>function("rdma_resolve_addr", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, whole_address(source), whole_address(destination), timeout_ms))


def resolve_route(uintptr_t id, int timeout_ms):
    """Begin to find the path through the fabric. Ends in ROUTE_RESOLVED or ROUTE_ERROR."""
    cdef number_call call = <number_call>function("rdma_resolve_route", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, timeout_ms))


def listen(uintptr_t id, int backlog):
    """Take requests: each comes as CONNECT_REQUEST."""
    cdef number_call call = <number_call>function("rdma_listen", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, backlog))


def connect(uintptr_t id, bytes private_data, *, uint32_t qp_num, uint8_t responder_resources, uint8_t initiator_depth,
            uint8_t retry_count, uint8_t rnr_retry_count):
    """Ask the other end for a connection. Ends in CONNECT_RESPONSE, REJECTED, UNREACHABLE or CONNECT_ERROR."""
    cdef rdma_conn_param given = parameters(private_data, qp_num, responder_resources, initiator_depth, rnr_retry_count)
    cdef connect_call call = <connect_call>function("rdma_connect", "RDMACM_1.0")
    given.retry_count = retry_count
    check(call(<rdma_cm_id*>id, &given))


def accept(uintptr_t id, bytes private_data, *, uint32_t qp_num, uint8_t responder_resources, uint8_t initiator_depth,
           uint8_t rnr_retry_count):
    """Grant a request. Ends in ESTABLISHED, or otherwise if the other end has given up."""
    cdef rdma_conn_param given = parameters(private_data, qp_num, responder_resources, initiator_depth, rnr_retry_count)
    cdef connect_call call = <connect_call>function("rdma_accept", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, &given))


def reject(uintptr_t id, bytes private_data):
    """Refuse a request."""
    cdef reject_call call = <reject_call>function("rdma_reject", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, <const char*>private_data, <uint8_t>len(private_data)))


def establish(uintptr_t id):
    """Tell the other end that its answer has come: it gets ESTABLISHED."""
    cdef plain_call call = <plain_call>function("rdma_establish", "RDMACM_1.2")
    check(call(<rdma_cm_id*>id))


def disconnect(uintptr_t id):
    """End a connection: the other end gets DISCONNECTED. The queue pair stays as it is."""
    cdef plain_call call = <plain_call>function("rdma_disconnect", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id))


def notify_established(uintptr_t id):
    """A message has come before the CM knew that the connection is up: tell it."""
    cdef number_call call = <number_call>function("rdma_notify", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, IBV_EVENT_COMM_EST))


def set_tos(uintptr_t id, uint8_t tos):
    """Set the type of service. Call it before resolve_addr()."""
    cdef option_call call = <option_call>function("rdma_set_option", "RDMACM_1.0")
    check(call(<rdma_cm_id*>id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &tos, sizeof(tos)))


def addresses(uintptr_t id):
    """(local, remote) as struct sockaddr; of a request, or after ADDR_RESOLVED."""
    return packed_address(source_of(<rdma_cm_id*>id)), packed_address(destination_of(<rdma_cm_id*>id))


def device_name(uintptr_t id):
    """The name of the device an identifier is bound to, None while it is bound to none."""
    cdef rdma_cm_id* pointer = <rdma_cm_id*>id
    return None if pointer.verbs == NULL else pointer.verbs.device.name.decode()


cdef sockaddr* whole_address(bytes packed) except NULL:
    cdef sockaddr* address = <sockaddr*><char*>packed
    if len(packed) < <Py_ssize_t>sizeof(sockaddr_in) or (address.sa_family == AF_INET6 and len(packed) < <Py_ssize_t>sizeof(sockaddr_in6)):
        raise ValueError(f"a struct sockaddr_in has {sizeof(sockaddr_in)} bytes, a sockaddr_in6 {sizeof(sockaddr_in6)}, not {len(packed)}")
    return address


cdef bytes packed_address(sockaddr* address):
    cdef size_t size = sizeof(sockaddr_in6) if address.sa_family == AF_INET6 else sizeof(sockaddr_in)
    return (<char*>address)[:size]


cdef rdma_conn_param parameters(bytes private_data, uint32_t qp_num, uint8_t responder_resources, uint8_t initiator_depth,
                                uint8_t rnr_retry_count) except *:
    """The private data is borrowed: `private_data` must outlive the call that takes this."""
    cdef rdma_conn_param given
    if len(private_data) > 255:
        raise ValueError(f"{len(private_data)} bytes of private data: the CM's length field has 8 bits")
    memset(&given, 0, sizeof(given))
    given.private_data = <const char*>private_data
    given.private_data_len = <uint8_t>len(private_data)
    given.qp_num = qp_num
    given.responder_resources = responder_resources
    given.initiator_depth = initiator_depth
    given.rnr_retry_count = rnr_retry_count
    return given
