"""LAYER 2, the checked calls: every native function that this package uses.

Whether the GIL is released and what an error becomes is decided here, once a function. This is the only
module that is linked to the libraries, so that one ggml lives in the process; the classes of layer 3
reach it through _native.pxd.
"""

import faulthandler
import logging
import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport exp, log
from libc.stdint cimport INT32_MIN
from libc.stdio cimport fflush, fprintf, stderr
from libc.string cimport memset, strncpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.unordered_set cimport unordered_set
from libcpp.vector cimport vector
from posix.unistd cimport getpid

from llava_native._cancel cimport watch_end, watch_progress, watch_stop
from llava_native.capi cimport ggml
from llava_native.errors import (
    DecodeError,
    EncodeError,
    ForkError,
    GrammarError,
    InvalidInputError,
    LlavaError,
    ModelLoadError,
    NativeAbort,
)
from llava_native.grammar import check_grammar

cdef extern from "capi/log_ring.hpp" namespace "llava_native" nogil:
    cppclass LogLine:
        int level
        string text

    cppclass LogRing:
        @staticmethod
        void sink(ggml.ggml_log_level level, const char *text, void *self) noexcept
        cbool pop(LogLine &out)
        @staticmethod
        vector[string] take_own()

cdef extern from "capi/openmp.hpp" namespace "llava_native" nogil:
    void release_team()

# never freed: native threads may still log while the interpreter exits
cdef LogRing *_ring = new LogRing()
cdef object _logger = logging.getLogger("llava_native")
cdef int _backend_pid = 0  # who initialised the backends
cdef dict _live = {"model": 0, "context": 0, "encoder": 0, "embedding": 0, "sampler": 0,
                   "adapter": 0}

# what C++ exceptions become in Cython; MemoryError and KeyboardInterrupt pass through unchanged
_CPP_ERRORS = (RuntimeError, ValueError, IndexError, OverflowError, ArithmeticError, TypeError, OSError)


# as functions of the C types: a static member function has no type that Cython knows
cdef void _log_sink(ggml.ggml_log_level level, const char *text, void *ring) noexcept nogil:
    if level != ggml.GGML_LOG_LEVEL_DEBUG:
        LogRing.sink(level, text, ring)


llama.llama_log_set(_log_sink, _ring)
mtmd.mtmd_log_set(_log_sink, _ring)


cdef tuple _drain_log():
    """Pass the native lines on to `logging`; return this thread's last warnings and errors."""
    cdef LogLine line
    cdef string own
    while _ring.pop(line):
        text = line.text.decode("utf-8", "replace")
        if line.level >= ggml.GGML_LOG_LEVEL_WARN:
            _logger.log(logging.ERROR if line.level == ggml.GGML_LOG_LEVEL_ERROR else logging.WARNING, text)
        else:
            _logger.debug(text)
    return tuple([own.decode("utf-8", "replace") for own in LogRing.take_own()])


cdef object _error(cls, str message, str call, code=None):
    """Return what a failed call raises."""
    return _error_in(NULL, cls, message, call, code)


cdef object _error_in(void *owner, cls, str message, str call, code=None):
    """Return it; where the call aborted that is NativeAbort, and `owner` is never touched again."""
    cdef string aborted = LastNet.take()
    if not aborted.empty():
        return _spoil(owner, call, aborted)
    return cls(message, call=call, code=code, log=_drain_log())


include "native/abort.pxi"


cdef int _ensure_backend() except -1:
    """Initialise the backends before the first native object: slow on a GPU build, so not at import."""
    global _backend_pid
    if not _backend_pid:
        llama.llama_backend_init()
        _backend_pid = getpid()
        _drain_log()
    elif _backend_pid != getpid() and (
            ggml.ggml_backend_dev_by_type(ggml.GGML_BACKEND_DEVICE_TYPE_GPU) != NULL
            or ggml.ggml_backend_dev_by_type(ggml.GGML_BACKEND_DEVICE_TYPE_IGPU) != NULL):
        # whatever asks its driver for anything would end the process
        raise ForkError("a GPU was opened before os.fork(); ask for nothing here, use spawn or forkserver")
    return 0


cdef int native_count(str kind, int change) except -1:
    """Count a native object that came to life (1) or was freed (-1)."""
    _live[kind] += change
    return 0


def live_counts():
    """Return how many native objects of each kind are alive, for tests."""
    return dict(_live)


def build_info():
    """Return what this build was made from and with, as CMake wrote it."""
    import json
    from importlib import resources

    return json.loads(resources.files("llava_native").joinpath("_build_info.json").read_text("utf-8"))


cdef dict _device_features(ggml.ggml_backend_dev_t device):
    cdef ggml.ggml_backend_reg_t reg = ggml.ggml_backend_dev_backend_reg(device)
    cdef void *address = ggml.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_get_features")
    cdef ggml.ggml_backend_feature *feature
    cdef dict features = {}
    if address != NULL:
        feature = (<ggml.ggml_backend_get_features_t>address)(reg)
        while feature.name != NULL:
            features[feature.name.decode()] = feature.value.decode()
            feature += 1
    return features


def devices():
    """Return the compute devices of this build: a list of dicts, in the order the libraries use them."""
    cdef size_t i, free, total
    cdef ggml.ggml_backend_dev_t device
    _ensure_backend()
    kinds = {
        ggml.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
        ggml.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
        ggml.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
        ggml.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    }
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        free = total = 0
        ggml.ggml_backend_dev_memory(device, &free, &total)
        found.append({
            "name": ggml.ggml_backend_dev_name(device).decode(),
            "backend": ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(device)).decode(),
            "type": kinds.get(ggml.ggml_backend_dev_get_type(device), "other"),
            "description": ggml.ggml_backend_dev_description(device).decode("utf-8", "replace"),
            "memory_free": free,
            "memory_total": total,
            "features": _device_features(device),
        })
    return found


# one linked module, one concept a file
include "native/yielding.pxi"
include "native/model.pxi"
include "native/adapter.pxi"
include "native/context.pxi"
include "native/encoder.pxi"
include "native/sampler.pxi"
