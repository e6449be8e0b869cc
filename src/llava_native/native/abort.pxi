# Part of _native: the last net, under the checks that make every abort we know of unreachable.

cdef extern from "capi/last_net.hpp" namespace "llava_native" nogil:
    cppclass LastNet:
        LastNet()
        void hold()

        @staticmethod
        string take()

        @staticmethod
        void spread(void (*report)(const char *message) noexcept)

        @staticmethod
        void roll_up()

        @staticmethod
        void hurry(unsigned int seconds)

cdef unsigned int REPORT_SECONDS = 5
cdef unordered_set[void *] _spoilt  # what an abort happened in: never touched again, never freed


cdef void _report(const char *message) noexcept nogil:
    """Write what happened to stderr, with every thread's Python stack: the process ends after this."""
    cdef string said
    fprintf(stderr, "llava_native: the native library aborted: %s\n", message)
    for said in LogRing.take_own():  # a GPU's library aborts with "CUDA error", and says before which one
        fprintf(stderr, "llava_native: it said: %s\n", said.c_str())
    fflush(stderr)
    LastNet.hurry(REPORT_SECONDS)
    with gil:
        if not faulthandler.is_enabled():  # else it writes the same when the signal comes
            faulthandler.dump_traceback(2, True)


cdef object _spoil(void *owner, str call, string message):
    """Return the exception of an abort that was unwound, and leave `owner` alone from here on."""
    if owner != NULL:
        _spoilt.insert(owner)
    text = message.decode("utf-8", "replace")
    _logger.error("the native library aborted in %s: %s", call, text)  # the exception may be lost on its way
    return NativeAbort(
        f"the native library aborted in {call}: {text}; this object can only be closed now, "
        "and the process had better start again", call=call, log=_drain_log())


cdef int native_check_sound(void *owner) except -1:
    """Raise if an abort happened in it."""
    if not _spoilt.empty() and _spoilt.count(owner):
        raise NativeAbort("the native library aborted in this object; make another")
    return 0


cdef bint native_is_sound(void *owner) noexcept nogil:
    return _spoilt.empty() or not _spoilt.count(owner)


def end_on_abort():
    """Let every abort end the process, for one that another process starts again."""
    LastNet.roll_up()


LastNet.spread(_report)
