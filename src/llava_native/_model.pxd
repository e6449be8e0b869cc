from llava_native.capi cimport llama


cdef class Model:
    cdef llama.llama_model *_ptr
    cdef dict _info
    cdef list _special_tokens
    cdef int _children  # open contexts and samplers, which the library lets point into this model
    cdef int _adapters  # that were ever loaded for it
    cdef int _calls     # threads inside the library for as long as a call lasts
    cdef int _pid       # of the process that loaded it
    cdef readonly str path
    cdef readonly bint vocab_only
    cdef object __weakref__
    cdef llama.llama_model *c_open(self) except NULL
    cdef int c_check_token(self, token) except -1
