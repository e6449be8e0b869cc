from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from llava_native._batch cimport Batch
from llava_native._cancel cimport Watch
from llava_native._model cimport Model
from llava_native.capi cimport llama


cdef class Context:
    cdef llama.llama_context *_ptr
    cdef Model _model             # must outlive _ptr, which points into it
    cdef Watch _watch              # of the running call; the library keeps its address
    cdef Batch _batch             # of the last evaluation
    cdef vector[int32_t] _n_past
    cdef vector[int32_t] _n_next  # _n_past, with what is laid out in the batch
    cdef int _views               # Logits that look into this context's memory
    cdef size_t _n_rows           # of logits that the library has room for without moving them
    cdef bint _has_logits         # the rows of the last evaluation still have their logits
    cdef bint _busy               # a thread is inside the library
    cdef int _pid                 # of the process that made it
    cdef dict _info
    cdef list _adapters           # that its graph points into
    cdef int _known_adapters      # of the model, that its graph has room for
    cdef readonly size_t last_input_address
    cdef object __weakref__
    cdef int c_check_mine(self) except -1
    cdef int c_enter(self) except -1
    cdef int c_check_sequence(self, long long seq) except -1
    cdef int c_check_room(self, int32_t seq, int32_t n_past, Py_ssize_t n) except -1
    cdef int c_eval(
        self, int32_t seq, Py_ssize_t n, int32_t *tokens, float *rows, bint logits, object cancel) except -1
    cdef int c_decode_slices(
        self, int32_t seq, Py_ssize_t n, int32_t *tokens, float *rows, bint logits) except -1
    cdef int c_decode(self) except -1
    cdef int c_lay_out(self, list kept) except -1
    cdef int c_add(self, object seq, object what, Py_ssize_t wanted) except -1
    cdef int c_forget_logits(self) except -1
    cdef float *c_logits(self, object row=*) except NULL
