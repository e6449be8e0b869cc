cdef class FloatBuffer:
    cdef float *_data            # owned by a subclass, or by `_owner`
    cdef object _owner           # keeps `_data` alive where a subclass does not own it, else None
    cdef int _ndim
    cdef Py_ssize_t _shape[2]
    cdef Py_ssize_t _strides[2]  # bytes
    cdef Py_ssize_t _exports     # buffers and DLPack tensors that others hold
    cdef int c_set(self, float *data, int ndim, Py_ssize_t rows, Py_ssize_t columns) except -1
    cdef int c_check_alive(self) except -1


cdef class Logits(FloatBuffer):
    cdef int *_views             # of the context, which `_owner` is: how many of these are alive
