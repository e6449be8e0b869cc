"""Context: the key/value memory of a model, and the evaluation of tokens and image rows into it."""

from libcpp cimport bool as cbool
cimport cython
from cpython.exc cimport PyErr_WarnEx
from cpython.number cimport PyNumber_Index
from posix.unistd cimport getpid

from llava_native._batch cimport Batch
from llava_native._buffer cimport Logits
from llava_native._cancel cimport CancelToken, watch_begin, watch_stop
from llava_native._embedding cimport ImageEmbedding
from llava_native._native cimport (
    native_check_sound, native_clear_memory, native_context_info, native_context_params,
    native_copy_sequence, native_free_context, native_logits, native_new_context, native_remove_positions,
    native_roll_back, native_set_threads,
)
from llava_native._native import devices
from llava_native.errors import (
    BusyError, ClosedError, ContextFullError, ForkError, InUseError, InvalidInputError,
)
from llava_native.limits import check_cache_types, check_memory, check_range
from llava_native.machine import default_flash_attn
from llava_native.threads import default_n_threads

cdef int MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, src/llama-cparams.h


cdef cbool _abort(void *watch) noexcept nogil:
    return watch_stop(<Watch *>watch)


@cython.no_gc_clear  # __dealloc__ needs _model, in a reference cycle too
cdef class Context:
    """The memory of a conversation, or of several: evaluated tokens, and what comes next.

    Parameters
    ----------
    model : Model
        Kept alive. Contexts of one model share its weights.
    n_ctx : int, default 4096
        Tokens that all sequences together can hold; 0 takes what the model was trained with.
    n_batch : int, default 2048
        Tokens handed to the library at once.
    n_ubatch : int, default 672
        Tokens computed at once; these take an image of LLaVA-1.5 and the text around it in one pass.
    n_seq_max : int, default 1
        Sequences, numbered from 0. They share one memory, so copying a prefix costs nothing.
    n_outputs : int, optional
        Rows of logits that a batch may want; default one a sequence.
    n_threads : int, optional
        CPU threads; default the physical cores that this process may use.
    flash_attn : bool, optional
        Default: on where the CPU has AVX2 or AVX-512 and nothing is kept as "f32", off on other CPUs,
        where it makes single tokens slower; the library's choice on a GPU.
    type_k, type_v : {"f16", "f32", "bf16", "q8_0"}, default "f16"
        How keys and values are kept. "q8_0" needs heads of a multiple of 32, for values flash attention too.
    offload_kqv : bool, default True
        Keep the memory on the GPU, where there is one.

    Raises
    ------
    InvalidInputError
        A number is out of range.
    ModelLoadError
        llama.cpp refused, e.g. for lack of memory.
    ClosedError
        The model was closed.

    Notes
    -----
    Native: llama_init_from_model, llama_free (llama.h). GIL: released while making, evaluating, freeing.
    Threads: one call at a time; a second one raises ``BusyError`` at once.
    """

    def __init__(
        self, Model model not None, *, long long n_ctx=4096, long long n_batch=2048, long long n_ubatch=672,
        long long n_seq_max=1, n_threads=None, flash_attn=None, str type_k="f16", str type_v="f16",
        bint offload_kqv=True, n_outputs=None,
    ):
        if self._ptr != NULL:
            raise InUseError("this Context is open already")
        model.c_open()
        if model.vocab_only:
            raise InvalidInputError("the model was loaded with vocab_only=True; it has no weights to run")
        n_threads = default_n_threads() if n_threads is None else n_threads
        n_ctx = n_ctx or model.n_ctx_train
        n_batch = min(n_batch, n_ctx)
        check_range("n_ctx", n_ctx, 8, 2**31 - 1)
        check_range("n_batch", n_batch, 1, n_ctx)
        check_range("n_seq_max", n_seq_max, 1, min(MAX_SEQUENCES, n_batch))
        n_outputs = min(n_outputs or n_seq_max, n_batch)
        check_range("n_outputs", n_outputs, n_seq_max, n_batch)
        check_range("n_threads", n_threads, 1, 512)
        check_range("n_ubatch", n_ubatch, 1, 2**31 - 1)
        if flash_attn is None:
            flash_attn = default_flash_attn(devices(), type_k, type_v)
        params = native_context_params(
            n_ctx, n_batch, n_ubatch, n_seq_max, n_outputs, n_threads, flash_attn, type_k, type_v)
        check_cache_types(model, type_k, type_v)
        check_memory(model, n_ctx, type_k, type_v, devices())
        params.offload_kqv = offload_kqv
        params.abort_callback = _abort
        params.abort_callback_data = &self._watch
        watch_begin(&self._watch, None, None)
        model._children += 1  # before the GIL is released: the model must not be closed meanwhile
        try:
            self._ptr = native_new_context(model.c_open(), &params)
        except BaseException:
            model._children -= 1
            raise
        self._model = model
        self._known_adapters = model._adapters
        self._has_logits = False
        self._pid = getpid()
        self._info = native_context_info(self._ptr) | {"n_threads": n_threads, "n_outputs": n_outputs}
        self._n_past.assign(n_seq_max, 0)
        self._n_rows = n_seq_max
        self._batch = Batch.__new__(Batch)
        self._batch.c_resize(self._info["n_batch"])

    def __dealloc__(self):
        if self._ptr != NULL and self._pid == getpid():
            native_free_context(self._ptr)
            self._model._children -= 1
            # not from __del__, which the stable ABI never calls
            PyErr_WarnEx(ResourceWarning, b"unclosed Context", 1)

    cdef int c_check_mine(self) except -1:
        if self._ptr == NULL:
            raise ClosedError("this context was closed")
        if self._pid != getpid():
            raise ForkError("this Context was made before os.fork(); make it in the child, or use spawn")
        if self._busy:
            raise BusyError("another thread is inside this Context; it serves one at a time")
        return 0

    cdef int c_enter(self) except -1:
        self.c_check_mine()
        return native_check_sound(self._ptr)

    cdef int c_check_sequence(self, long long seq) except -1:
        if not 0 <= seq < <long long>self._n_past.size():  # in C: between here and _busy nobody may enter
            check_range("the sequence (see n_seq_max)", seq, 0, <long long>self._n_past.size() - 1)
        return 0

    cdef int c_check_room(self, int32_t seq, int32_t n_past, Py_ssize_t n) except -1:
        n_ctx = self._info["n_ctx_seq"]
        if n_past + n > n_ctx:
            raise ContextFullError(
                f"{n} more tokens do not fit: sequence {seq} holds {n_past} of {n_ctx}; "
                "use a larger n_ctx, or truncate_sequence")
        return 0

    def eval(self, tokens, *, long long seq=0, bint logits=True, CancelToken cancel=None):
        """Evaluate tokens or image rows at the end of a sequence.

        Parameters
        ----------
        tokens : ImageEmbedding or iterable of int
            Image rows are read where they lie, without a copy. In pieces, ``rows[:100]`` and
            ``rows[100:]``, they give the same.
        seq : int, default 0
        logits : bool, default True
            Whether those after the last of them are wanted.
        cancel : CancelToken, optional
            Stops the evaluation within about 100 ms.

        Returns
        -------
        int
            ``n_past``: the tokens that the sequence holds now.

        Raises
        ------
        ContextFullError
            They do not fit. Nothing was evaluated.
        InvalidInputError
            An id or the sequence is out of range, or there is nothing to evaluate.
        EmbeddingMismatchError
            The rows are not as wide as the model's.
        CancelledError, TimeoutExpiredError
            `cancel` said stop. The sequence holds what it held before (a recurrent model's, nothing).
        DecodeError, ClosedError, BusyError, ForkError

        Notes
        -----
        Native: llama_decode (llama.h). GIL: released.
        """
        cdef ImageEmbedding rows
        cdef vector[int32_t] ids
        cdef Py_ssize_t n_ctx
        self.c_enter()
        n_ctx = self._info["n_ctx_seq"]
        self.c_check_sequence(seq)
        if cancel is not None:
            cancel.raise_if_cancelled()
        if isinstance(tokens, ImageEmbedding):
            rows = tokens
            rows.c_check_width(self._model.n_embd)
            return self.c_eval(<int32_t>seq, rows._shape[0], NULL, rows._data, logits, cancel)
        for token in tokens:
            token = PyNumber_Index(token)
            self._model.c_check_token(token)
            ids.push_back(token)
            if <Py_ssize_t>ids.size() > n_ctx:  # an iterable may have no end
                self.c_check_room(<int32_t>seq, self._n_past[seq], <Py_ssize_t>ids.size())
        self.c_enter()  # again: the iterable may have run anything, in any thread
        return self.c_eval(<int32_t>seq, <Py_ssize_t>ids.size(), ids.data(), NULL, logits, cancel)

    def eval_batch(self, entries, *, CancelToken cancel=None):
        """Evaluate tokens and image rows, of several sequences, in one call of the library.

        Parameters
        ----------
        entries : iterable of (int, ImageEmbedding or sequence of int, int)
            A sequence; the image rows or tokens to add at its end; and after how many of them, the last
            ones, the logits are wanted (False: none, True: one). Together at most ``n_batch``. Of one
            sequence there may be several entries, one after another. Image rows are read where they lie if
            there is nothing else; else all is copied together, and both kinds need ``can_mix``.
        cancel : CancelToken, optional
            Stops the evaluation within about 100 ms.

        Returns
        -------
        list of int
            In order, the rows whose logits were wanted, for ``Sampler.sample(ctx, row=...)``.

        Raises
        ------
        As ``eval``
            After each of them every sequence holds what it held before (a recurrent model's, nothing).

        Notes
        -----
        Native: llama_decode (llama.h). GIL: released.
        """
        cdef list kept = [
            (PyNumber_Index(seq),
             what if isinstance(what, ImageEmbedding) else [PyNumber_Index(token) for token in what],
             PyNumber_Index(wants))
            for seq, what, wants in entries]
        cdef bint laid = False, done = False
        if cancel is not None:
            cancel.raise_if_cancelled()
        self.c_enter()  # after the iterables, which may have run anything
        self._busy = True
        try:
            self.c_lay_out(kept)
            laid = True
            watch_begin(&self._watch, cancel, None)
            self.c_decode()
            done = True
            self._n_past.swap(self._n_next)
        finally:
            try:
                for seq, _, _ in kept if laid and not done else ():
                    self._n_past[<int32_t>seq] = native_roll_back(
                        self._ptr, seq, self._n_past[<int32_t>seq])
            finally:
                self._busy = False
        return list(self._batch.rows)

    cdef int c_lay_out(self, list kept) except -1:
        """Make the batch of these entries, whose numbers are integers by now."""
        self.c_forget_logits()
        self._n_next = self._n_past
        for seq, what, wants in kept:
            self.c_add(seq, what, wants)
        if not kept:
            raise InvalidInputError("there is nothing to evaluate")
        if 0 < self._batch.n_image < self._batch.n and not self.can_mix:
            raise InvalidInputError("tokens and image rows need batches of their own here; see can_mix")
        check_range("rows of logits", self._batch.rows.size(), 0, self._info["n_outputs"])
        if self._views and self._batch.rows.size() > self._n_rows:  # the library would move them
            raise BufferError(f"{self._views} views of the logits are alive, and more rows need more room")
        self._n_rows = max(self._n_rows, self._batch.rows.size())
        return 0

    cdef int c_add(self, object seq, object what, Py_ssize_t wanted) except -1:
        """Lay tokens or image rows at the end of a sequence out in the batch."""
        cdef int32_t n_past
        cdef Py_ssize_t n = len(what)
        cdef vector[int32_t] ids
        self.c_check_sequence(seq)
        check_range("wanted logits", wanted, 0, n)
        n_past = self._n_next[<int32_t>seq]
        if n == 0:
            raise InvalidInputError(f"an entry of sequence {seq} has no tokens")
        self.c_check_room(seq, n_past, n)
        if self._batch.n + n > self._batch.capacity:
            raise InvalidInputError(f"the batch has more tokens than n_batch={self._batch.capacity}")
        if isinstance(what, ImageEmbedding):
            (<ImageEmbedding>what).c_check_width(self._model.n_embd)
            self._batch.c_push_rows((<ImageEmbedding>what)._data, n, n_past, seq)
        else:
            for token in what:
                self._model.c_check_token(token)
            ids = what
            self._batch.c_push_tokens(ids.data(), n, n_past, seq)
        self._n_next[<int32_t>seq] = n_past + <int32_t>n
        return self._batch.c_want_logits(wanted)

    cdef int c_forget_logits(self) except -1:
        self._has_logits = False
        self._batch.c_clear()
        return 0

    cdef int c_eval(
        self, int32_t seq, Py_ssize_t n, int32_t *tokens, float *rows, bint logits, object cancel) except -1:
        """Evaluate tokens or rows, the other is NULL; all of them or none."""
        cdef int32_t n_past = self._n_past[seq]
        cdef bint done = False
        if n == 0:
            raise InvalidInputError("there is nothing to evaluate")
        self.c_check_room(seq, n_past, n)
        self._busy = True
        self.c_forget_logits()
        try:
            watch_begin(&self._watch, cancel, None)
            self.c_decode_slices(seq, n, tokens, rows, logits)
            done = True
        finally:
            try:
                if not done:  # slices that went through before the failure stay in the memory
                    self._n_past[seq] = native_roll_back(self._ptr, seq, n_past)
            finally:
                self._busy = False
        return self._n_past[seq]

    cdef int c_decode_slices(
        self, int32_t seq, Py_ssize_t n, int32_t *tokens, float *rows, bint logits) except -1:
        cdef int32_t *n_past = &self._n_past[seq]
        cdef Py_ssize_t n_embd = self._model.n_embd
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t count
        while start < n:
            count = min(n - start, self._batch.capacity)
            self._batch.c_clear()
            if rows != NULL:
                self._batch.c_push_rows(rows + start * n_embd, count, n_past[0], seq)
            else:
                self._batch.c_push_tokens(tokens + start, count, n_past[0], seq)
            if logits and start + count == n:
                self._batch.c_want_logits(1)
            self.c_decode()
            n_past[0] += <int32_t>count
            start += count
        return 0

    cdef int c_decode(self) except -1:
        """One llama_decode of the batch."""
        self._batch.c_lay_input(self._model.c_open(), self._model.n_embd)
        self.last_input_address = self._batch.c_input_address()
        if self._batch.c_decode(self._ptr, &self._watch):
            raise ContextFullError(
                f"no free cells for {self._batch.n} more tokens: the sequences together hold "
                f"{sum(self._n_past)} of {self._info['n_ctx']}; clear one, or use a larger n_ctx")
        self._has_logits = not self._batch.rows.empty()
        return 0

    cdef float *c_logits(self, object row=None) except NULL:
        """A row of logits, by default the last; borrowed until the next evaluation. `row` is an int."""
        self.c_enter()
        if not self._has_logits:
            raise InvalidInputError("there are no logits: evaluate tokens first")
        if row is None:
            return native_logits(self._ptr, -1)
        if self._batch.c_has_logits(row):
            return native_logits(self._ptr, row)
        raise InvalidInputError(f"row {row} of the last batch has no logits; see eval_batch")

    @property
    def logits(self):
        """Logits : float32 (n_vocab,), a view of the last row; the next ``eval`` changes it."""
        cdef Logits view = Logits.__new__(Logits)
        view.c_set(self.c_logits(), 1, self._model.n_vocab, 1)
        view._owner, view._views = self, &self._views
        self._views += 1
        return view

    def n_past(self, long long seq=0):
        """Return how many tokens a sequence holds."""
        self.c_check_sequence(seq)
        return self._n_past[seq]

    def truncate_sequence(self, long long seq, long long n):
        """Keep the first `n` tokens of a sequence; the logits are gone: llama_memory_seq_rm (llama.h)."""
        self.c_enter()
        self.c_check_sequence(seq)
        if not 0 <= n <= self._n_past[seq]:
            held = self._n_past[seq]
            raise InvalidInputError(f"sequence {seq} holds {held} tokens; it cannot be cut to {n}")
        native_remove_positions(self._ptr, <int32_t>seq, <int32_t>n)
        self._n_past[seq] = <int32_t>n
        self.c_forget_logits()

    def copy_sequence(self, long long src, long long dst, n=None):
        """Make `dst` the first `n` tokens of `src`; cells are shared: llama_memory_seq_cp (llama.h)."""
        n = None if n is None else PyNumber_Index(n)
        self.c_enter()
        self.c_check_sequence(src)
        self.c_check_sequence(dst)
        n = self._n_past[src] if n is None else n
        if not 0 <= n <= self._n_past[src]:
            raise InvalidInputError(f"sequence {src} holds {self._n_past[src]} tokens, not {n}")
        if src == dst:
            raise InvalidInputError(f"cannot copy sequence {src} onto itself; use truncate_sequence")
        if self._model.is_recurrent and n != self._n_past[src]:
            raise InvalidInputError(f"a recurrent model's sequence {src} can only be copied whole")
        native_remove_positions(self._ptr, <int32_t>dst, 0)
        if n:
            native_copy_sequence(self._ptr, <int32_t>src, <int32_t>dst, <int32_t>n)
        self._n_past[dst] = <int32_t>n

    def clear(self):
        """Forget all sequences: llama_memory_clear (llama.h)."""
        self.c_enter()
        native_clear_memory(self._ptr)
        self._n_past.assign(self._n_past.size(), 0)
        self.c_forget_logits()

    def set_n_threads(self, long long n_threads):
        """Use this many CPU threads from the next evaluation on: llama_set_n_threads (llama.h)."""
        check_range("n_threads", n_threads, 1, 512)  # first: nothing may run between c_enter and its use
        self.c_enter()
        native_set_threads(self._ptr, <int32_t>n_threads)
        self._info["n_threads"] = n_threads

    def close(self):
        """Free the memory. May be called again; ``BufferError`` while an array over ``logits`` is alive."""
        if self._ptr == NULL:
            return
        self.c_check_mine()
        if self._views:
            raise BufferError(f"{self._views} views of this context's logits are still alive")
        cdef llama.llama_context *ptr = self._ptr
        self._ptr = NULL  # before the GIL is released: nobody may see a freed pointer
        native_free_context(ptr)
        self._adapters = None
        self._model._children -= 1

    @property
    def closed(self):
        """bool : whether the context was closed."""
        return self._ptr == NULL

    def __enter__(self):
        self.c_enter()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        if self._ptr == NULL:
            return "Context(closed)"
        return f"Context(n_ctx={self._info['n_ctx']}, n_seq_max={self._info['n_seq_max']})"

    @property
    def model(self):
        """Model : whose context this is."""
        return self._model

    @property
    def n_ctx(self):
        """int : tokens that all sequences together can hold."""
        return self._info["n_ctx"]

    @property
    def n_ctx_seq(self):
        """int : tokens that one sequence can hold."""
        return self._info["n_ctx_seq"]

    @property
    def n_batch(self):
        """int : tokens handed to the library at once."""
        return self._info["n_batch"]

    @property
    def n_ubatch(self):
        """int : tokens computed at once."""
        return self._info["n_ubatch"]

    @property
    def n_seq_max(self):
        """int : sequences."""
        return self._info["n_seq_max"]

    @property
    def n_threads(self):
        """int : CPU threads."""
        return self._info["n_threads"]

    @property
    def can_mix(self):
        """bool : whether tokens and image rows may share a batch; in the models of LLaVA's kinds they may."""
        return self._model.has_plain_embeddings and not any(
            [adapter.changes_embeddings for adapter in self._adapters or ()])
