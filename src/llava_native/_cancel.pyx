"""Cancelling native calls: from another thread, by Ctrl-C, or at a deadline.

The libraries poll a callback while they load, encode and decode, on the thread that made the call. It
reads C fields without the GIL; only on the main thread, twenty times a second, it takes the GIL to let
Python's signal handlers run, so that Ctrl-C works inside a long call.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF

import threading

from llava_native.errors import CancelledError, InvalidInputError, TimeoutExpiredError

cdef extern from *:
    """
    #include <chrono>
    static inline long long steady_ns() {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    // relaxed and lock-free: a plain int that another thread sets once
    static inline int read_flag(const int * flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
    static inline void set_flag(int * flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
    """
    long long steady_ns() nogil
    int read_flag(const int *flag) nogil
    void set_flag(int *flag) nogil

cdef long long SIGNAL_POLL_NS = 50_000_000


cdef class CancelToken:
    """Stop native calls from another thread, or at a deadline.

    Parameters
    ----------
    timeout : float, optional
        Seconds from now after which calls that watch this token raise ``TimeoutExpiredError``.

    Notes
    -----
    One token may be given to any number of calls, at once or in turn; it cannot be taken back. A call
    that it stops raises within about 100 ms, and the object of the call is usable afterwards.
    Threads: every method may be called from any thread.
    """

    def __cinit__(self, timeout=None):
        self._deadline_ns = 0
        if timeout is not None:
            if not timeout >= 0:
                raise InvalidInputError(f"timeout must be at least 0 seconds, not {timeout!r}")
            # capped at about 100 years: infinity is a timeout that never comes
            self._deadline_ns = steady_ns() + <long long>(min(timeout, 3e9) * 1e9)

    def cancel(self):
        """Stop every call that watches this token, now or later; they raise ``CancelledError``."""
        set_flag(&self._cancelled)

    @property
    def cancelled(self):
        """bool : whether ``cancel()`` was called or the deadline has passed."""
        return bool(read_flag(&self._cancelled)) or self.expired

    @property
    def expired(self):
        """bool : whether the deadline has passed."""
        return self._deadline_ns != 0 and steady_ns() >= self._deadline_ns

    def raise_if_cancelled(self):
        """Raise ``CancelledError`` or ``TimeoutExpiredError`` if this token says stop."""
        if read_flag(&self._cancelled):
            raise CancelledError("cancelled")
        if self.expired:
            raise TimeoutExpiredError("the timeout expired")


cdef int watch_begin(Watch *watch, CancelToken token, object progress) except -1:
    """Start watching a call. The caller keeps `token` and `progress` alive until `watch_end`."""
    watch.cancelled = NULL
    watch.deadline_ns = 0
    watch.next_poll_ns = 0
    watch.progress = NULL
    watch.error = NULL
    watch.step = 0
    watch.stopped = False
    if token is not None:
        watch.cancelled = &token._cancelled
        watch.deadline_ns = token._deadline_ns
    if progress is not None:
        watch.progress = <PyObject *>progress
    if threading.get_ident() == threading.main_thread().ident:
        watch.next_poll_ns = steady_ns() + SIGNAL_POLL_NS
    return 0


cdef bint _signals_raise(Watch *watch) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as exc:
        Py_INCREF(exc)
        watch.error = <PyObject *>exc
        return True
    return False


cdef bint watch_stop(Watch *watch) noexcept nogil:
    """Whether the watched call must stop now; called by the libraries on the calling thread."""
    cdef long long now
    if watch.stopped:
        return True
    if watch.cancelled != NULL and read_flag(watch.cancelled):
        watch.stopped = True
    elif watch.deadline_ns or watch.next_poll_ns:
        now = steady_ns()
        if watch.deadline_ns and now >= watch.deadline_ns:
            watch.stopped = True
        elif watch.next_poll_ns and now >= watch.next_poll_ns:
            watch.next_poll_ns = now + SIGNAL_POLL_NS
            watch.stopped = _signals_raise(watch)
    return watch.stopped


cdef bint _progress_raises(Watch *watch, float progress) noexcept with gil:
    try:
        # like upstream's callback: False stops the load
        if (<object>watch.progress)(progress) is False:
            return True
    except BaseException as exc:
        Py_INCREF(exc)
        watch.error = <PyObject *>exc
        return True
    return False


cdef cbool watch_progress(float progress, void *watch) noexcept nogil:
    """A load progress callback: True to go on."""
    cdef Watch *w = <Watch *>watch
    if watch_stop(w):
        return False
    if w.progress != NULL and _progress_raises(w, progress):
        w.stopped = True
    return not w.stopped


cdef int watch_end(Watch *watch, str what) except -1:
    """Raise what stopped the call, if anything did. `what` names the call for people."""
    cdef object error
    if watch.error != NULL:
        error = <object>watch.error
        Py_DECREF(error)
        watch.error = NULL
        raise error
    if watch.stopped:
        if watch.cancelled != NULL and read_flag(watch.cancelled):
            raise CancelledError(f"{what} was cancelled")
        if watch.deadline_ns and steady_ns() >= watch.deadline_ns:
            raise TimeoutExpiredError(f"the timeout expired during {what}")
        raise CancelledError(f"{what} was stopped by its progress callback")
    return 0
