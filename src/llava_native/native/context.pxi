# Part of _native: contexts, decoding, sequences.

_CACHE_TYPES = {"f32": ggml.GGML_TYPE_F32, "f16": ggml.GGML_TYPE_F16, "bf16": ggml.GGML_TYPE_BF16,
                "q8_0": ggml.GGML_TYPE_Q8_0}
_FLASH_ATTN = {None: llama.LLAMA_FLASH_ATTN_TYPE_AUTO, False: llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
               True: llama.LLAMA_FLASH_ATTN_TYPE_ENABLED}


cdef int _cache_type(str name, object value) except -1:
    if value not in _CACHE_TYPES:
        raise InvalidInputError(f"{name} must be one of {', '.join(_CACHE_TYPES)}, not {value!r}")
    return _CACHE_TYPES[value]


cdef llama.llama_context_params native_context_params(
    uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch, uint32_t n_seq_max, uint32_t n_outputs,
    int32_t n_threads, object flash_attn, str type_k, str type_v) except *:
    """llama_context_default_params (llama.h), with these; the caller has checked the numbers."""
    cdef llama.llama_context_params params = llama.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = n_batch
    params.n_ubatch = min(n_ubatch, n_batch)
    params.n_seq_max = n_seq_max
    params.n_outputs_max = n_outputs  # not n_batch: saves their memory
    params.n_threads = params.n_threads_batch = n_threads
    params.kv_unified = True          # one pool of cells: sequences can share a prefix
    params.no_perf = True
    params.type_k = <ggml.ggml_type>_cache_type("type_k", type_k)
    params.type_v = <ggml.ggml_type>_cache_type("type_v", type_v)
    if flash_attn not in (None, False, True):
        raise InvalidInputError(f"flash_attn must be True, False or None, not {flash_attn!r}")
    params.flash_attn_type = _FLASH_ATTN[flash_attn]
    return params


cdef llama.llama_context *native_new_context(
    llama.llama_model *model, llama.llama_context_params *params) except NULL:
    """llama_init_from_model (llama.h)."""
    cdef llama.llama_context *ctx = NULL
    try:
        with nogil:
            ctx = llama.llama_init_from_model(model, params[0])
    except _CPP_ERRORS as exc:
        raise _error(ModelLoadError, f"no context on this model: {exc}", "llama_init_from_model") from exc
    if ctx == NULL:
        raise _error(
            ModelLoadError,
            f"llama.cpp could not make a context of n_ctx={params.n_ctx}; is there enough memory?",
            "llama_init_from_model")
    native_count("context", 1)
    try:
        _drain_log()  # runs handlers, and lets a Ctrl-C in
    except BaseException:
        native_free_context(ctx)
        raise
    return ctx


cdef void native_free_context(llama.llama_context *ctx) noexcept:
    if native_is_sound(ctx):
        with nogil:
            llama.llama_free(ctx)
    native_count("context", -1)


cdef dict native_context_info(llama.llama_context *ctx):
    return {
        "n_ctx": llama.llama_n_ctx(ctx),
        "n_ctx_seq": llama.llama_n_ctx_seq(ctx),
        "n_batch": llama.llama_n_batch(ctx),
        "n_ubatch": llama.llama_n_ubatch(ctx),
        "n_seq_max": llama.llama_n_seq_max(ctx),
    }


cdef int native_decode(llama.llama_context *ctx, llama.llama_batch *batch, Watch *watch) except? -100:
    """llama_decode (llama.h): 0, or 1 when no free cells were found; everything else raises."""
    cdef int rc
    try:
        with nogil:
            _give_way()
            rc = llama.llama_decode(ctx, batch[0])
            if rc == 0:
                llama.llama_synchronize(ctx)
    except _CPP_ERRORS as exc:
        raise _error(DecodeError, f"evaluation failed: {exc}", "llama_decode") from exc
    watch_end(watch, "evaluation")
    if rc == 0 or rc == 1:
        _drain_log()
        return rc
    if rc == -1:
        raise _error(InvalidInputError, "the batch was refused", "llama_decode", rc)
    raise _error(DecodeError, "evaluation failed", "llama_decode", rc)


cdef float *native_logits(llama.llama_context *ctx, int32_t row) except NULL:
    """llama_get_logits_ith (llama.h); borrowed from the context, valid until its next decode."""
    cdef float *logits = llama.llama_get_logits_ith(ctx, row)
    if logits == NULL:
        raise _error(InvalidInputError, f"row {row} has no logits", "llama_get_logits_ith")
    return logits


# These touch tables, not data, and keep the GIL: no other thread can start to evaluate meanwhile.

cdef int native_clear_memory(llama.llama_context *ctx) except -1:
    """llama_memory_clear (llama.h), the tables only."""
    cdef LastNet net
    native_check_sound(ctx)
    net.hold()
    try:
        llama.llama_memory_clear(llama.llama_get_memory(ctx), False)
    except _CPP_ERRORS as exc:
        raise _error_in(ctx, DecodeError, f"it cannot be cleared: {exc}", "llama_memory_clear") from exc
    return 0


cdef int _remove_positions(llama.llama_context *ctx, int32_t seq, int32_t start) except -1:
    """llama_memory_seq_rm (llama.h) from position `start` to the end; 0 where this memory cannot."""
    cdef LastNet net
    native_check_sound(ctx)
    net.hold()
    try:
        return llama.llama_memory_seq_rm(llama.llama_get_memory(ctx), seq, start, -1)
    except _CPP_ERRORS as exc:
        raise _error_in(ctx, DecodeError, f"it cannot be cut: {exc}", "llama_memory_seq_rm") from exc


cdef int native_remove_positions(llama.llama_context *ctx, int32_t seq, int32_t start) except -1:
    """llama_memory_seq_rm (llama.h) from position `start` to the end."""
    if not _remove_positions(ctx, seq, start):
        raise _error(
            InvalidInputError, "this model's memory cannot be cut inside a sequence", "llama_memory_seq_rm")
    return 0


cdef int32_t native_roll_back(llama.llama_context *ctx, int32_t seq, int32_t n) except -1:
    """Cut a sequence to `n` tokens, a recurrent model's to none; return how many are left."""
    if _remove_positions(ctx, seq, n):
        return n
    native_remove_positions(ctx, seq, 0)
    return 0


cdef int native_copy_sequence(llama.llama_context *ctx, int32_t src, int32_t dst, int32_t end) except -1:
    """llama_memory_seq_cp (llama.h): share cells, copy nothing."""
    cdef LastNet net
    native_check_sound(ctx)
    net.hold()
    try:
        llama.llama_memory_seq_cp(llama.llama_get_memory(ctx), src, dst, 0, end)
    except _CPP_ERRORS as exc:
        raise _error_in(ctx, DecodeError, f"it cannot be copied: {exc}", "llama_memory_seq_cp") from exc
    return 0


cdef int native_set_threads(llama.llama_context *ctx, int32_t n_threads) except -1:
    """llama_set_n_threads (llama.h), for single tokens and for batches."""
    llama.llama_set_n_threads(ctx, n_threads, n_threads)
    release_team()  # of another size from now on
    return 0


# These copy the data of a sequence, and release the GIL.

cdef bytes native_get_state(llama.llama_context *ctx, int32_t seq):
    """llama_state_seq_get_size and llama_state_seq_get_data (llama.h)."""
    cdef size_t size, written
    cdef bytes state
    cdef unsigned char *into
    try:
        size = llama.llama_state_seq_get_size(ctx, seq)
        state = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        into = <unsigned char *><char *>state
        with nogil:
            written = llama.llama_state_seq_get_data(ctx, into, size, seq)
    except _CPP_ERRORS as exc:
        raise _error(
            DecodeError, f"the state cannot be taken: {exc}", "llama_state_seq_get_data") from exc
    if size == 0 or written != size:
        raise _error(DecodeError, "the state cannot be taken", "llama_state_seq_get_data")
    return state


cdef int native_set_state(
    llama.llama_context *ctx, int32_t seq, const unsigned char *state, size_t size) except -1:
    """llama_state_seq_set_data (llama.h). A failure leaves the sequence empty."""
    cdef LastNet net
    cdef size_t read
    native_check_sound(ctx)
    net.hold()
    try:
        with nogil:
            read = llama.llama_state_seq_set_data(ctx, state, size, seq)
    except _CPP_ERRORS as exc:
        raise _error_in(
            ctx, InvalidInputError, f"the state does not fit: {exc}", "llama_state_seq_set_data") from exc
    if read != size:  # it catches what it throws itself, an abort that was unwound too
        raise _error_in(
            ctx, InvalidInputError, "the state is damaged, or of another model or context",
            "llama_state_seq_set_data")
    return 0
