from llava_native._cancel cimport Watch
from llava_native.capi cimport mtmd


cdef class ImageEncoder:
    cdef mtmd.mtmd_context *_ptr
    cdef Watch _watch   # of the running call; the library keeps its address
    cdef bint _busy     # a thread is inside the library
    cdef int _pid       # of the process that loaded it
    cdef object _info   # preflight's facts about the file
    cdef readonly str path
    cdef readonly str dtype
    cdef readonly str fingerprint
    cdef readonly int n_threads
    cdef object __weakref__
    cdef int c_enter(self) except -1
