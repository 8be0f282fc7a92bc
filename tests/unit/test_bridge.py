"""Pointers out of objects that only look like pyverbs': each is refused with an exception, and none is followed.

The real ones are taken in a guest with soft-RoCE, in tests/lab.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from typing import Any

import pytest

_bridge = pytest.importorskip("rdsx._bridge", reason="rdsx was built without the headers of rdma-core")


def look_alike(name: str, module: str = "pyverbs.made_up", **fields: Any) -> Any:
    """An object of a class with this name, with one slot where pyverbs' would have their pointer."""
    return type(name, (), {"__slots__": ("pointer",), "__module__": module, **fields})()


def refusal(name: str, address: int) -> Exception:
    """What is raised of an object that points there."""
    thing = look_alike(name, **NUMBERS)
    slot = ctypes.c_void_p.from_address(id(thing) + object.__basicsize__)
    gc.disable()  # it would follow the pointer: to Python the slot holds an object
    try:
        slot.value = address
        DOORS[name](thing)
    except Exception as error:
        return error
    finally:
        slot.value = None
        gc.enable()
    raise AssertionError("it was taken")


DOORS = {
    "Context": _bridge.context_pointer,
    "CompChannel": _bridge.comp_channel_pointer,
    "CQ": lambda thing: _bridge.cq_pointer(thing, 1),
    "QP": lambda thing: _bridge.qp_pointer(thing, 1, 2),
    "CMEventChannel": _bridge.event_channel_pointer,
    "CMID": lambda thing: _bridge.cm_id_pointer(thing, 1),
    "CMEvent": _bridge.read_cm_event,
}
NUMBERS = {"cmd_fd": 3, "num_comp_vectors": 1, "cqe": 17, "qp_num": 17, "qp_type": 2, "event_type": 4}
each_door = pytest.mark.parametrize("name", DOORS)


@each_door
@pytest.mark.parametrize("address", [2**64 - 4096, 4096, 0x7FFF_FFFF_0000, id(object) + 1], ids=["end", "start", "stack", "odd"])
def test_memory_that_cannot_be_read(name: str, address: int) -> None:
    """Where following the pointer would end the process, or which is no pointer."""
    error = refusal(name, address)
    assert (type(error), str(error)) == (_bridge.Unsupported, f"pyverbs' {name} is laid out in a way that is not known")


@each_door
def test_memory_of_something_else(name: str) -> None:
    """It can be read, and says nothing that the object says of itself."""
    memory = ctypes.create_string_buffer(b"\xa5" * 4096, 4096)
    error = refusal(name, (ctypes.addressof(memory) + 7) & ~7)
    assert (type(error), str(error)) == (
        _bridge.Unsupported,
        f"what is found where pyverbs' {name} should keep its pointer is no {name}",
    )


@each_door
def test_a_closed_object(name: str) -> None:
    thing = look_alike(name, **NUMBERS)
    with pytest.raises(OSError, match=f"this {name} is closed"):
        DOORS[name](thing)


@each_door
def test_an_object_that_is_not_pyverbs(name: str) -> None:
    with pytest.raises(TypeError, match=f"a {name} of pyverbs is needed, not object"):
        DOORS[name](object())
    thing = look_alike(name, module="verbs", **NUMBERS)
    with pytest.raises(TypeError, match=f"a {name} of pyverbs is needed"):
        DOORS[name](thing)


@each_door
def test_a_class_without_room(name: str) -> None:
    empty = type(name, (), {"__slots__": (), "__module__": "pyverbs.made_up"})
    with pytest.raises(_bridge.Unsupported, match="no room for a pointer"):
        DOORS[name](empty())


ALONE = """
import sys
import rdsx, rdsx.diagnosis, rdsx._bridge, rdsx._rings, rdsx.verbs
with open("/proc/self/maps") as maps:
    loaded = maps.read()
assert "ibverbs" not in loaded and "rdmacm" not in loaded
assert not [name for name in sys.modules if name.startswith("pyverbs")]
"""


def test_no_library_is_needed_to_import() -> None:
    """A wheel with everything in it works where rdma-core is absent: it is looked for when it is asked for."""
    done = subprocess.run([sys.executable, "-P", "-c", ALONE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_stays_open() -> None:
    """Each proof takes a pipe."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        refusal("QP", 4096)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("packed", [b"", bytes(15), (10).to_bytes(2, "little") + bytes(20)])
def test_an_address_that_is_cut_short(packed: bytes) -> None:
    """Refused before anything is called: librdmacm would read on behind it."""
    with pytest.raises((ValueError, _bridge.Unsupported), match=r"struct sockaddr_in has 16 bytes|has no rdma_bind_addr"):
        _bridge.bind_addr(0, packed)


def test_private_data_that_no_length_field_holds() -> None:
    with pytest.raises((ValueError, _bridge.Unsupported)):
        _bridge.accept(0, bytes(256), qp_num=1, responder_resources=1, initiator_depth=1, rnr_retry_count=7)
