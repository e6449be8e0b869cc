from llava_native._buffer cimport FloatBuffer
from llava_native.capi cimport mtmd


cdef class ImageEmbedding(FloatBuffer):
    cdef mtmd.mtmd_batch *_batch  # owns the rows of an encode; NULL where they are borrowed
    cdef Py_buffer _borrowed      # the caller's buffer; `buf` is NULL where there is none
    cdef readonly str fingerprint
    cdef int c_borrow(self, object rows) except -1
    cdef int c_check_width(self, Py_ssize_t n_embd) except -1


cdef ImageEmbedding embedding_from_batch(
    mtmd.mtmd_batch *batch, float *data, Py_ssize_t n_tokens, Py_ssize_t n_embd, str fingerprint)
