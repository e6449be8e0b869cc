from libcpp.vector cimport vector

from llava_native._context cimport Context
from llava_native._model cimport Model
from llava_native.capi cimport llama


cdef class Sampler:
    cdef llama.llama_sampler *_chain
    cdef llama.llama_sampler *_grammar  # NULL without one
    cdef Model _model                   # must outlive both, which point into its vocabulary
    cdef vector[llama.llama_token_data] _candidates
    cdef bint _busy                     # a thread is sampling
    cdef int _pid
    cdef object _matcher                # a constraint.Matcher, or None
    cdef readonly object params
    cdef object __weakref__
    cdef int c_check_mine(self) except -1
    cdef int c_enter(self) except -1
    cdef int c_free(self) except -1
    cdef float *c_logits(self, Context ctx, object row) except NULL
