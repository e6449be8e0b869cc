from cpython.object cimport PyObject
from libcpp cimport bool as cbool


cdef struct Watch:
    # One native call being watched, on its caller's stack or in its object; no GIL is needed to read it.
    const int *cancelled    # the token's flag, or NULL; the call holds a reference to the token
    long long deadline_ns   # on the steady clock; 0: none
    long long next_poll_ns  # when signal handlers run next; 0: never, as off the main thread
    PyObject *progress      # borrowed: a callable of one float, or NULL
    PyObject *error         # owned: what a signal handler or the progress callable raised, or NULL
    int step                # graph nodes seen by an encode
    bint stopped            # the call was told to stop


cdef class CancelToken:
    cdef int _cancelled
    cdef long long _deadline_ns


cdef int watch_begin(Watch *watch, CancelToken token, object progress) except -1
cdef bint watch_stop(Watch *watch) noexcept nogil
cdef cbool watch_progress(float progress, void *watch) noexcept nogil
cdef int watch_end(Watch *watch, str what) except -1
