"""Model: the weights and the vocabulary of a language model."""

import os
import re

from cpython.exc cimport PyErr_WarnEx
from cpython.number cimport PyNumber_Index
from posix.unistd cimport getpid

from llava_native._cancel cimport CancelToken, Watch, watch_begin
from llava_native._native cimport (
    native_detokenize,
    native_free_model,
    native_is_eog,
    native_load_model,
    native_model_info,
    native_model_params,
    native_special_tokens,
    native_token_piece,
    native_tokenize,
)
from llava_native._native import devices
from llava_native.errors import (
    BusyError,
    ClosedError,
    ForkError,
    InUseError,
    InvalidInputError,
    UnsupportedModelError,
)
from llava_native.gguf import Value, read_header
from llava_native.limits import check_range
from llava_native.preflight import check_text_model
from llava_native.preflight.text import all_tensors
from llava_native.profiles import text_overrides
from llava_native.readahead import read_ahead
from llava_native.repack import should_repack

# pre-tokenizers whose splitters are written by hand; the others recurse once a character (engine.md 2.2)
_SAFE_PRE_TOKENIZERS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "gpt-2", "qwen2"})
_MAX_RUN = 1500  # characters of one class; overflows a 512 KB stack at about 1,650
# the classes of the splitter's regex: \s, \p{L}, \p{N}, the rest; where Python's differ, a little wider
_LONG_RUN = re.compile("|".join(rf"(?:{kind}){{{_MAX_RUN},}}" for kind in (
    r"\s", r"[^\W\d_]", r"\d|[^\W\x00-\x7f]", r"[^\w\s]|[_\x1c-\x1f]")))
# UTF-8's pattern beyond the last code point: the one kind of invalid bytes that llama.cpp does not replace
_BEYOND_UNICODE = re.compile(rb"\xf4[\x90-\xbf][\x80-\xbf]{2}|[\xf5-\xf7][\x80-\xbf]{3}")


cdef class Model:
    """A language model: its weights, loaded once, and its vocabulary.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file of a decoder-only language model.
    n_gpu_layers : int, default -1
        Layers to keep on the GPU; -1 all, 0 none. Without a GPU backend it has no effect.
    main_gpu : int, default 0
        The GPU that holds the model when it is not split.
    use_mmap : bool, default True
        Map the file instead of reading it. A mapped file must not be truncated while it is open.
    use_mlock : bool, default False
        Keep the weights from being swapped out.
    repack : bool, optional
        Copy quantised weights into another order, for kernels that want it. Default: where that is known to
        be faster; Q4_K is multiplied faster as it is stored on a CPU with AVX2 and without AVX-512, and on
        one with AVX-512 VNNI; so are Q5_K, Q6_K and Q8_0 on one with AMX. What is not copied stays mapped
        from the file.
    vocab_only : bool, default False
        Load only the vocabulary; ``Context`` then refuses the model.
    kv_overrides : dict of str to (bool, int, float or str), optional
        Metadata to use instead of the file's, e.g. ``{"tokenizer.ggml.pre": "llama-bpe"}``. What files
        of before May 2024 lack is supplied by itself (``llava_native.profiles``), and a line logged.
    progress : callable of one float, optional
        Called with 0.0 to 1.0 while loading; returning False, or raising, stops the load.
    cancel : CancelToken, optional
        Stops the load.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        As ``open()``.
    ModelFormatError, UnsupportedModelError
        The file is damaged, truncated, an mmproj, or of an architecture that is not run here.
    ModelLoadError
        llama.cpp refused the file; the last log lines are attached.
    CancelledError, TimeoutExpiredError
        `cancel` said stop.

    Notes
    -----
    Native: llama_model_load_from_file, llama_model_free (llama.h).
    GIL: released while loading, freeing and tokenising.
    Threads: any number may use a model at once; contexts on it run in parallel.
    """

    def __init__(
        self, path, *, n_gpu_layers=-1, int main_gpu=0, bint use_mmap=True, bint use_mlock=False,
        repack=None, bint vocab_only=False, kv_overrides=None, progress=None, CancelToken cancel=None,
    ):
        cdef Watch watch
        if self._ptr != NULL:
            raise InUseError("this Model is loaded already")
        check_range("n_gpu_layers", n_gpu_layers, -(2**31), 2**31 - 1)
        self.path = os.fsdecode(path)
        self.vocab_only = vocab_only
        self._special_tokens = None
        header = read_header(self.path)
        overrides = {**text_overrides(header), **(kv_overrides or {})}
        _check_overrides(header, overrides)
        info = check_text_model(_overridden(header, overrides), vocab_only=vocab_only)
        params = native_model_params()
        params.n_gpu_layers = n_gpu_layers
        params.main_gpu = main_gpu
        params.vocab_only = vocab_only
        params.use_extra_bufts = (
            should_repack(all_tensors(header).values(), devices()) if repack is None else bool(repack))
        if use_mlock:
            params.load_mode = llama.LLAMA_LOAD_MODE_MMAP_MLOCK if use_mmap else llama.LLAMA_LOAD_MODE_MLOCK
        else:
            params.load_mode = llama.LLAMA_LOAD_MODE_MMAP if use_mmap else llama.LLAMA_LOAD_MODE_NONE
        if use_mmap and not vocab_only:
            for file in info.files:
                read_ahead(file, cancel.raise_if_cancelled if cancel is not None else bool)
        watch_begin(&watch, cancel, progress)
        self._ptr = native_load_model(self.path, &params, list(overrides.items()), &watch)
        self._pid = getpid()
        self._info = native_model_info(self._ptr)
        self._info["metadata"].update(
            (key, str(value).lower() if isinstance(value, bool) else str(value))
            for key, value in overrides.items())
        if self._info["vocab_is_none"]:
            self.close()
            raise UnsupportedModelError(f"{self.path} has no vocabulary")
        if not vocab_only and not (self._info["one_dimensional_rope"] and self._info["is_decoder_only"]):
            self.close()
            raise UnsupportedModelError(
                f"{self.path}: {self._info['description']} is not run here: only decoder-only models "
                "with one position a token are")

    def __dealloc__(self):
        if self._ptr != NULL and self._pid == getpid():
            native_free_model(self._ptr)
            # not from __del__, which the stable ABI never calls
            PyErr_WarnEx(ResourceWarning, f"unclosed Model {self.path!r}".encode("utf-8", "replace"), 1)

    cdef llama.llama_model *c_open(self) except NULL:
        if self._ptr == NULL:
            raise ClosedError(f"the model {self.path} was closed")
        if self._pid != getpid():
            raise ForkError("this Model was loaded before os.fork(); load it in the child, or use spawn")
        return self._ptr

    cdef int c_check_token(self, token) except -1:
        if not 0 <= token < self._info["n_vocab"]:  # as Python numbers: of any size
            raise InvalidInputError(f"token id {token} is not in 0..{self._info['n_vocab'] - 1}")
        return 0

    def close(self):
        """Free the weights. May be called again.

        Raises
        ------
        InUseError
            A ``Context`` or ``Sampler`` of this model is still open, or a ``LoraAdapter`` alive.
        BusyError
            Another thread is tokenising.
        """
        if self._ptr == NULL:
            return
        self.c_open()
        if self._children:
            raise InUseError(
                f"close the {self._children} contexts, samplers and adapters of this model first")
        if self._calls:
            raise BusyError("another thread is tokenising with this model")
        cdef llama.llama_model *ptr = self._ptr
        self._ptr = NULL  # before the GIL is released: nobody may see a freed pointer
        native_free_model(ptr)

    @property
    def closed(self):
        """bool : whether the model was closed."""
        return self._ptr == NULL

    def __enter__(self):
        self.c_open()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = "closed" if self._ptr == NULL else self._info["description"]
        return f"Model({os.path.basename(self.path or '')!r}, {state})"

    def tokenize(self, text, *, bint add_special=True, bint parse_special=False):
        """Turn text into token ids.

        Parameters
        ----------
        text : str or bytes
            UTF-8 where bytes; others become byte tokens, or U+FFFD where the vocabulary has none.
        add_special : bool, default True
            Add BOS (and EOS) where the model wants them.
        parse_special : bool, default False
            Read the text of special tokens, such as ``<|end|>``, as those tokens. Only for text that is
            yours, never for a user's.

        Returns
        -------
        list of int

        Raises
        ------
        InvalidInputError
            The text cannot be tokenised: over 2 GiB, or a run of one kind of character that is so long
            that this vocabulary's pre-tokenizer would overflow the stack.

        Notes
        -----
        Native: llama_tokenize (llama.h). GIL: released. Threads: any number at once.
        """
        self.c_open()
        raw = text.encode() if isinstance(text, str) else bytes(memoryview(text))
        if len(raw) >= 2**31 - 16:
            raise InvalidInputError(f"the text has {len(raw)} bytes; at most 2 GiB can be tokenised")
        if not self._info["is_spm"]:
            if not isinstance(text, str):
                raw = _BEYOND_UNICODE.sub("\N{REPLACEMENT CHARACTER}".encode(), raw)
            if len(raw) >= _MAX_RUN:
                self._check_runs(raw)
        self._calls += 1
        try:
            return native_tokenize(self.c_open(), raw, add_special, parse_special)
        finally:
            self._calls -= 1

    def _check_runs(self, raw):
        pre = self._info["metadata"].get("tokenizer.ggml.pre", "default")
        if pre in _SAFE_PRE_TOKENIZERS:
            return
        run = _LONG_RUN.search(raw.decode("utf-8", "replace"))
        if run:
            raise InvalidInputError(
                f"the text has {run.end() - run.start()} characters of one kind in a row, from character "
                f"{run.start()}; this model's pre-tokenizer ({pre}) takes at most {_MAX_RUN - 1}. Break the "
                "run, or name the right pre-tokenizer with kv_overrides={'tokenizer.ggml.pre': …}")

    def token_bytes(self, token, *, bint special=False):
        """Return the UTF-8 bytes of one token; they may be part of a character.

        Parameters
        ----------
        token : int
        special : bool, default False
            Give the text of special tokens instead of nothing.

        Returns
        -------
        bytes

        Raises
        ------
        InvalidInputError
            The id is out of range.

        Notes
        -----
        Native: llama_token_to_piece (llama.h). GIL: held; it is a table look-up.
        """
        token = PyNumber_Index(token)
        self.c_open()
        self.c_check_token(token)
        return native_token_piece(self._ptr, token, special)

    def detokenize(self, ids, *, bint remove_special=False, bint unparse_special=False):
        """Turn token ids into text; bytes that are no UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
        remove_special : bool, default False
            Leave out a BOS and EOS at the ends.
        unparse_special : bool, default False
            Write special tokens as their text instead of nothing.

        Returns
        -------
        str

        Raises
        ------
        InvalidInputError
            An id is out of range.

        Notes
        -----
        Native: llama_detokenize (llama.h). GIL: released.
        """
        self.c_open()
        ids = [PyNumber_Index(token) for token in ids]
        for token in ids:
            self.c_check_token(token)
        self._calls += 1
        try:
            text = native_detokenize(self.c_open(), ids, remove_special, unparse_special)
        finally:
            self._calls -= 1
        return text.decode("utf-8", "replace")

    def is_eog(self, token):
        """Return whether a token ends a generation: end of text, of turn, and their like."""
        token = PyNumber_Index(token)
        self.c_open()
        self.c_check_token(token)
        return bool(native_is_eog(self._ptr, token))

    @property
    def special_tokens(self):
        """dict of str to int : the control and user-defined tokens by their text."""
        return {text.decode("utf-8", "replace"): token for text, token, _, _ in self._special()}

    def _special(self):
        """[(text bytes, id, strips spaces to its left, to its right)], read once."""
        self.c_open()
        if self._special_tokens is None:
            self._special_tokens = native_special_tokens(self._ptr)
        return self._special_tokens

    @property
    def metadata(self):
        """dict of str to str : the file's scalar metadata, as the library prints it,
        with `kv_overrides` in place of what they replace."""
        return dict(self._info["metadata"])

    @property
    def description(self):
        """str : architecture, size and weight type, e.g. ``llama 3B Q4_K - Medium``."""
        return self._info["description"]

    @property
    def chat_template(self):
        """str or None : the file's own Jinja chat template."""
        return self._info["chat_template"]

    @property
    def n_vocab(self):
        """int : token ids run from 0 to this, excluded."""
        return self._info["n_vocab"]

    @property
    def n_embd(self):
        """int : floats in an embedding row; must equal the mmproj's."""
        return self._info["n_embd"]

    @property
    def has_plain_embeddings(self):
        """bool : whether what tokens are read as can be looked up; see ``Context.can_mix``."""
        return self._info["has_plain_embeddings"]

    @property
    def n_layer(self):
        """int : blocks."""
        return self._info["n_layer"]

    @property
    def n_ctx_train(self):
        """int : the context, in tokens, that the model was trained with."""
        return self._info["n_ctx_train"]

    @property
    def n_params(self):
        """int : weights."""
        return self._info["n_params"]

    @property
    def size_bytes(self):
        """int : bytes of the weights."""
        return self._info["size_bytes"]

    @property
    def is_spm(self):
        """bool : whether the vocabulary is a SentencePiece one, which puts a space before a text."""
        return self._info["is_spm"]

    @property
    def is_recurrent(self):
        """bool : whether a sequence is, in some layer, one state that cannot be cut to an earlier token.

        Native: llama_model_is_recurrent, llama_model_is_hybrid (llama.h).
        """
        return bool(self._info["is_recurrent"])

    @property
    def bos(self):
        """int : the begin-of-text token, -1 where there is none."""
        return self._info["bos"]

    @property
    def eos(self):
        """int : the end-of-text token, -1 where there is none."""
        return self._info["eos"]

    @property
    def eot(self):
        """int : the end-of-turn token, -1 where there is none."""
        return self._info["eot"]

    @property
    def add_bos(self):
        """bool : whether a prompt starts with BOS."""
        return bool(self._info["add_bos"])


def _check_overrides(header, overrides):
    """Refuse what the library would cut short, or ignore because the file has a value of another type."""
    for key, value in overrides.items():
        if not isinstance(key, str) or not key or "\0" in key:
            raise InvalidInputError(f"kv_overrides: {key!r} is no name of a metadata key")
        if not isinstance(value, (bool, int, float, str)):
            raise InvalidInputError(
                f"kv_overrides[{key!r}] must be a bool, int, float or str, not {type(value).__name__}")
        if isinstance(value, str) and ("\0" in value or not _is_utf8(value)):
            raise InvalidInputError(f"kv_overrides[{key!r}] cannot be stored as UTF-8 without NUL: {value!r}")
        if isinstance(value, int) and not -2**63 <= value < 2**63:
            raise InvalidInputError(f"kv_overrides[{key!r}] is {value}, which has more than 64 bits")
        stored = header.metadata[key].value if key in header.metadata else value
        if type(stored) is not type(value):
            raise InvalidInputError(
                f"kv_overrides[{key!r}] is of type {type(value).__name__}, and the file has "
                f"{header.metadata[key].type} there, which the library would keep")


def _is_utf8(text):
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _overridden(header, overrides):
    """The header as the library will see it."""
    types = {bool: "bool", int: "u32", float: "f32", str: "str"}
    return header.with_values({
        key: Value(
            header.metadata[key].type if key in header.metadata else types.get(type(value), "str"), value)
        for key, value in overrides.items()
    })
