"""Long calls beside an event loop: what its thread does must not wait for our time slices."""

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef bint _serves_loop = False


def serve_loop():
    """Let other threads run before each evaluation and encode from now on: an event loop is among them.

    Whoever waited for the GIL wakes up when such a call releases it, and Linux may queue that thread behind
    the caller, which computes on: up to a whole tick, 4 ms, also where another core is idle. For good, and
    for this process: where nobody waits it costs nothing, and where other programs keep the cores busy, up to
    a time slice a call.
    """
    global _serves_loop
    _serves_loop = True


cdef void _give_way() noexcept nogil:
    if _serves_loop:
        sched_yield()
