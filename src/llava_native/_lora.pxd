from llava_native._model cimport Model
from llava_native.capi cimport llama


cdef class LoraAdapter:
    cdef llama.llama_adapter_lora *_ptr
    cdef Model _model  # must outlive _ptr, which is in its table
    cdef int _pid      # of the process that loaded it
    cdef int _number   # among the adapters of its model
    cdef readonly str path, fingerprint
    cdef readonly double scale
    cdef readonly object nbytes
    cdef readonly bint changes_embeddings
    cdef object __weakref__
