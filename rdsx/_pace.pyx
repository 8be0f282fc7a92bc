"""The await rule, cheap enough to be asked on every call.

An async method that need not wait must still see a cancellation on each call, and must let others run every so often. trio's own
checkpoint functions cost a microsecond a call, several times what queueing a message costs. `Pace.due()` asks the same questions and
says only whether a real checkpoint has to follow. `submit()` and `take()` ask it and do what the call is for, all at once. Invariants: it
never says no to a cancelled task; when a checkpoint is due, nothing was sent and nothing taken.
"""

from libc.stdint cimport uint32_t
from libc.time cimport time_t

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE

from rdsx._fast cimport Endpoint

import trio


cdef extern from "time.h" nogil:
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* now)


# current_task() without its Python frame and the look-up by thread, which cost more than all the rest here: this thread's part of trio's
# run context. Where trio keeps the task elsewhere, the call is right too.
cdef object run_context = getattr(trio._core._run, "GLOBAL_RUN_CONTEXT", None)
cdef object current_task = trio.lowlevel.current_task
cdef object current_effective_deadline = trio.current_effective_deadline
# trio offers this bit only wrapped into a deadline that takes ten times as long; should it ever move, the slow way is right too.
cdef bint has_status = hasattr(trio.lowlevel.Task, "_cancel_status")


cdef enum:
    NOT_TRIED = -100


cdef class Pace:
    cdef uint32_t calls             # since the last yield
    cdef uint32_t max_calls
    cdef double interval_s
    cdef double yielded_at_s
    cdef object clock               # None: the system's own
    cdef dict here                  # trio's run context in the thread that made this

    def __cinit__(self, double interval_s, uint32_t max_calls, clock=None):
        self.interval_s = interval_s
        self.max_calls = max_calls
        self.clock = clock
        self.yielded_at_s = -1e300
        self.here = getattr(run_context, "__dict__", {})

    cdef double now_s(self) except? -1:
        cdef timespec now
        if self.clock is not None:
            return self.clock()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return now.tv_sec + now.tv_nsec * 1e-9

    def due(self):
        return self.is_due()

    cdef bint is_due(self) except -1:
        cdef object task
        self.calls += 1
        if self.calls >= self.max_calls or self.now_s() - self.yielded_at_s >= self.interval_s:
            return True
        if has_status:
            task = self.here.get("task")
            if task is None:  # outside of a trio run, or kept elsewhere
                task = current_task()
            return task._cancel_status.effectively_cancelled
        return current_effective_deadline() == float("-inf")

    def submit(self, Endpoint endpoint not None, data, address):
        cdef int code
        if not endpoint.bound or not PyBytes_CheckExact(data) or self.is_due():
            return NOT_TRIED
        code = endpoint.submit_one(data, address)
        return -code if code else PyBytes_GET_SIZE(data)

    def take(self, Endpoint endpoint not None):
        return None if not endpoint.queued or self.is_due() else endpoint.pop()

    def yielded(self):
        self.calls = 0
        self.yielded_at_s = self.now_s()
