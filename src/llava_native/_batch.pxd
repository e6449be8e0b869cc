from libc.stdint cimport int8_t, int32_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from llava_native._cancel cimport Watch
from llava_native.capi cimport llama


cdef struct Rows:
    # Image rows among the entries. `data` is the caller's, and must stay until they are evaluated.
    Py_ssize_t first
    Py_ssize_t n
    float *data


cdef class Batch:
    cdef llama.llama_batch _raw        # its arrays are the vectors below, and `embd` perhaps the caller's
    cdef vector[int32_t] _tokens, _positions, _seq_ids, _ones
    cdef vector[int32_t *] _sequences  # each points to its entry of _seq_ids
    cdef vector[int8_t] _wants_logits
    cdef vector[Rows] _images          # in rising order
    cdef vector[float] _mixed          # rows of all entries, where they do not lie together
    cdef vector[int32_t] rows          # the entries whose logits are wanted, in rising order
    cdef Py_ssize_t n                  # entries laid out
    cdef Py_ssize_t n_image            # of which so many are image rows
    cdef Py_ssize_t capacity
    cdef int c_resize(self, Py_ssize_t capacity) except -1
    cdef void c_clear(self) noexcept
    cdef void c_push(self, int32_t token, int32_t position, int32_t seq) noexcept
    cdef void c_push_tokens(
        self, const int32_t *tokens, Py_ssize_t n, int32_t position, int32_t seq) noexcept
    cdef int c_push_rows(self, float *data, Py_ssize_t n, int32_t position, int32_t seq) except -1
    cdef int c_want_logits(self, Py_ssize_t n) except -1
    cdef cbool c_has_logits(self, long long row) noexcept
    cdef int c_lay_input(self, llama.llama_model *model, Py_ssize_t n_embd) except -1
    cdef int c_mix(self, llama.llama_model *model, Py_ssize_t n_embd) except -1
    cdef size_t c_input_address(self) noexcept
    cdef int c_decode(self, llama.llama_context *ctx, Watch *watch) except -1
