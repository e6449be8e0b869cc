"""Sampler: choose the next token from a context's logits."""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int32_t
from posix.unistd cimport getpid

from llava_native._context cimport Context
from llava_native._native cimport (
    native_accept,
    native_check_sound,
    native_free_samplers,
    native_log_sum_exp,
    native_new_chain,
    native_new_grammar,
    native_reset_samplers,
    native_sample,
    native_top,
)
from llava_native.errors import BusyError, ClosedError, ForkError, InUseError, InvalidInputError
from llava_native.params import SamplingParams


@cython.no_gc_clear  # __dealloc__ needs _model, in a reference cycle too
cdef class Sampler:
    """Choose tokens as ``SamplingParams`` says, remembering what was chosen.

    Parameters
    ----------
    model : Model
        Kept alive; its vocabulary is used.
    params : SamplingParams, optional
        Default: llama.cpp's own.
    matcher : llava_native.params.TokenMatcher, optional
        Tells which tokens may come next.

    Raises
    ------
    GrammarError
        The grammar does not parse.
    InvalidInputError
        A biased token id is out of range.

    Notes
    -----
    Native: llama_sampler_chain_init, llama_sampler_init_* (llama.h). Order of the chain: logit bias,
    penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature, choice. A grammar is checked on the
    chosen token first and filters the vocabulary only where that fails, as llama.cpp's programs do.
    Threads: one at a time; a second one raises ``BusyError``.
    """

    def __init__(self, Model model not None, params=None, *, matcher=None):
        if self._chain != NULL:
            raise InUseError("this Sampler is open already")
        model.c_open()
        params = SamplingParams() if params is None else params
        for token in params.logit_bias or ():
            model.c_check_token(token)
        self.params = params
        self._matcher = matcher
        self._pid = getpid()
        model._children += 1  # before any Python code runs: the model must not be closed meanwhile
        try:
            self._chain = native_new_chain(model.c_open(), params)
        except BaseException:
            model._children -= 1
            raise
        self._model = model
        if params.grammar is not None:
            try:
                self._grammar = native_new_grammar(model.c_open(), params.grammar, params.grammar_root)
            except BaseException:
                self.c_free()
                raise
        self._candidates.resize(model.n_vocab)

    cdef int c_free(self) except -1:
        if self._chain == NULL:
            return 0
        cdef llama.llama_sampler *chain = self._chain
        cdef llama.llama_sampler *grammar = self._grammar
        self._chain = self._grammar = NULL  # before the GIL is released: nobody may see a freed pointer
        native_free_samplers(chain, grammar)
        self._model._children -= 1
        return 0

    def __dealloc__(self):
        if self._pid == getpid():
            self.c_free()

    cdef int c_check_mine(self) except -1:
        if self._chain == NULL:
            raise ClosedError("this sampler was closed")
        if self._pid != getpid():
            raise ForkError("this Sampler was made before os.fork(); make it in the child, or use spawn")
        if self._busy:
            raise BusyError("another thread is inside this Sampler; it serves one at a time")
        return 0

    cdef int c_enter(self) except -1:
        self.c_check_mine()
        return native_check_sound(self._chain)

    cdef float *c_logits(self, Context ctx, object row) except NULL:
        if ctx._model is not self._model:
            raise InvalidInputError("the sampler and the context belong to different models")
        return ctx.c_logits(row)

    def sample(self, Context ctx not None, row=None):
        """Choose the token after the last one that `ctx` evaluated, and remember it.

        Parameters
        ----------
        ctx : Context
            Of the same model.
        row : int, optional
            One of those that ``Context.eval_batch`` returned; default the last row that was evaluated.

        Returns
        -------
        int

        Raises
        ------
        InvalidInputError
            `ctx` has no logits, or belongs to another model.
        GrammarError
            The grammar lets no token through.

        Notes
        -----
        Native: llama_get_logits_ith, llama_sampler_apply, llama_sampler_accept (llama.h). GIL: released.
        """
        cdef int token
        cdef float *logits
        cdef const unsigned char *mask = NULL
        cdef bytes bits
        row = None if row is None else PyNumber_Index(row)  # now: it may run anything
        self.c_enter()
        if self._matcher is not None:
            bits = self._matcher.mask()
            if <size_t>len(bits) * 8 < self._candidates.size():
                raise InvalidInputError(f"a mask of {len(bits)} bytes has no bit for every token")
            mask = bits
            self.c_enter()  # again: the matcher may have run anything
        logits = self.c_logits(ctx, row)
        self._busy = ctx._busy = True
        try:
            token = native_sample(self._chain, self._grammar, logits, mask, &self._candidates)
        finally:
            self._busy = ctx._busy = False
        self.accept(token)
        return token

    def accept(self, token):
        """Remember a token as part of the text, for penalties and the grammar.

        Raises
        ------
        GrammarError
            The grammar forbids the token here.
        """
        token = PyNumber_Index(token)
        self.c_enter()
        self._model.c_check_token(token)
        self._busy = True
        try:
            native_accept(self._chain, self._grammar, token)
        finally:
            self._busy = False
        if self._matcher is not None:
            self._matcher.accept(token)

    def logprobs(self, Context ctx not None, token, int top=0, row=None):
        """Return how likely the model found a token, and the likeliest ones, before any sampler.

        Parameters
        ----------
        ctx : Context
            Of the same model, with the logits that `token` was chosen from.
        token : int
        top : int, default 0
            How many of the likeliest tokens to name, 0 to 100.
        row : int, optional
            As ``sample`` takes it.

        Returns
        -------
        logprob : float
            Natural logarithm of its probability.
        top : list of (int, float)
            The likeliest first.

        Notes
        -----
        Native: llama_get_logits_ith (llama.h).
        """
        cdef float *logits
        cdef double total
        cdef int32_t ids[100]
        cdef Py_ssize_t n = self._candidates.size()
        cdef int32_t chosen
        row = None if row is None else PyNumber_Index(row)  # now: it may run anything
        token = PyNumber_Index(token)
        self.c_enter()
        self._model.c_check_token(token)
        chosen = token
        if not 0 <= top <= min(100, n):
            raise InvalidInputError(f"top must be 0 to 100, not {top}")
        logits = self.c_logits(ctx, row)
        total = native_log_sum_exp(logits, n)
        if top:  # with nothing asked for, there is no smallest one to compare with
            native_top(logits, n, top, ids)
        return logits[chosen] - total, [(ids[i], logits[ids[i]] - total) for i in range(top)]

    def reset(self):
        """Forget what was chosen, and start the random numbers again from the seed.

        Notes
        -----
        Native: llama_sampler_reset (llama.h).
        """
        self.c_enter()
        self._busy = True
        try:
            native_reset_samplers(self._chain, self._grammar)
        finally:
            self._busy = False

    def close(self):
        """Free the sampler. May be called again."""
        if self._chain != NULL:
            self.c_check_mine()
            self.c_free()

    @property
    def closed(self):
        """bool : whether the sampler was closed."""
        return self._chain == NULL

    def __enter__(self):
        self.c_enter()
        return self

    def __exit__(self, *exc_info):
        self.close()
