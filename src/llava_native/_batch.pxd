from libc.stdint cimport int8_t, int32_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from llava_native._cancel cimport Watch
from llava_native.capi cimport llama


cdef class Batch:
    cdef llama.llama_batch _raw        # its arrays are the vectors below; `token` or `embd` the caller's
    cdef vector[int32_t] tokens, _positions, _seq_ids, _ones
    cdef vector[int32_t *] _sequences  # each points to its entry of _seq_ids
    cdef vector[int8_t] _wants_logits
    cdef vector[int32_t] rows          # the entries whose logits are wanted, in rising order
    cdef Py_ssize_t n                  # entries laid out
    cdef Py_ssize_t capacity
    cdef int c_resize(self, Py_ssize_t capacity) except -1
    cdef void c_clear(self) noexcept
    cdef void c_push(self, int32_t token, int32_t position, int32_t seq) noexcept
    cdef void c_span(self, int32_t seq, int32_t first, Py_ssize_t n) noexcept
    cdef int c_want_logits(self, Py_ssize_t row) except -1
    cdef cbool c_holds(self, int32_t seq) noexcept
    cdef cbool c_has_logits(self, long long row) noexcept
    cdef int c_decode(
        self, llama.llama_context *ctx, int32_t *tokens, float *rows, Watch *watch) except -1
