"""LoraAdapter: small matrices that are added to those of a model, and the contexts that use them."""

import math
import os

cimport cython
from libcpp.vector cimport vector
from posix.unistd cimport getpid

from llava_native._context cimport Context
from llava_native._model cimport Model
from llava_native._native cimport native_free_adapter, native_load_adapter, native_set_adapters
from llava_native.capi cimport llama
from llava_native.errors import InUseError, InvalidInputError
from llava_native.gguf import read_header
from llava_native.preflight import check_adapter


@cython.no_gc_clear  # __dealloc__ needs _model, in a reference cycle too
cdef class LoraAdapter:
    """A LoRA adapter of one model.

    Parameters
    ----------
    model : Model
        What it was made for; kept open while the adapter is alive.
    path : str or os.PathLike
        A GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it.
    scale : float, default 1.0
        How much of it is added; negative takes it away.

    Raises
    ------
    ModelFormatError, UnsupportedModelError
        The file is damaged, no LoRA adapter, or one of another model.
    ModelLoadError
        llama.cpp refused it.
    InvalidInputError
        `scale` is not a number.
    ClosedError, OSError

    Notes
    -----
    Native: llama_adapter_lora_init, llama_adapter_lora_free (llama.h). GIL: kept. Load adapters before
    contexts: one that was made earlier has no room for theirs in its graph, and refuses them. The library
    reads the model's list of adapters while it makes a context or first evaluates with them: load and drop
    none while another thread does that with the same model.
    """

    def __init__(self, Model model not None, path, *, double scale=1.0):
        if self._ptr != NULL:
            raise InUseError("this LoraAdapter is loaded already")
        if not math.isfinite(scale):
            raise InvalidInputError(f"the scale of an adapter must be a number, not {scale}")
        self.path = os.fsdecode(path)
        self.scale = scale
        header = read_header(self.path)
        check_adapter(header, read_header(model.path))
        self.nbytes = sum([tensor.nbytes for tensor in header.tensors.values()])
        self.changes_embeddings = any(name.startswith("token_embd.") for name in header.tensors)
        self.fingerprint = header.fingerprint()
        model._children += 1  # before any Python code runs: the model must not be closed meanwhile
        try:
            self._ptr = native_load_adapter(model.c_open(), self.path)
        except BaseException:
            model._children -= 1
            raise
        self._pid = getpid()
        self._model = model
        model._adapters += 1
        self._number = model._adapters

    def __dealloc__(self):
        if self._ptr != NULL and self._pid == getpid():
            native_free_adapter(self._ptr)
            self._model._children -= 1

    def __repr__(self):
        return f"LoraAdapter({os.path.basename(self.path or '')!r}, scale={self.scale})"


def set_adapters(Context context not None, adapters):
    """Have a context add these adapters to its model from now on.

    Parameters
    ----------
    context : Context
        Empty, and made after the adapters were loaded.
    adapters : iterable of LoraAdapter
        Kept alive; empty uses none.

    Raises
    ------
    InvalidInputError
        An adapter is another model's, or was loaded after the context was made; or the context holds
        tokens, which were evaluated without them.

    Notes
    -----
    Native: llama_set_adapters_lora (llama.h).
    """
    cdef vector[llama.llama_adapter_lora *] pointers
    cdef vector[float] scales
    cdef LoraAdapter adapter
    cdef list kept = list(adapters)
    context.c_enter()
    if any(context.n_past(seq) for seq in range(context.n_seq_max)):
        raise InvalidInputError("the context holds tokens that were evaluated with other adapters; clear it")
    for adapter in kept:
        if adapter._model is not context._model:
            raise InvalidInputError(f"{adapter.path} was loaded for another Model")
        if adapter._number > context._known_adapters:
            raise InvalidInputError(f"{adapter.path} was loaded after the context was made; make another")
        pointers.push_back(adapter._ptr)
        scales.push_back(<float>adapter.scale)
    native_set_adapters(context._ptr, &pointers, &scales)
    context._adapters = kept


def adapters_of(Context context not None):
    """Return the adapters that a context uses."""
    return list(context._adapters or ())
