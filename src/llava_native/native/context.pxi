# Part of _native: contexts, decoding, sequences.

cdef llama.llama_context_params native_context_params() noexcept:
    return llama.llama_context_default_params()


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
    _drain_log()
    native_count("context", 1)
    return ctx


cdef void native_free_context(llama.llama_context *ctx) noexcept:
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
    llama.llama_memory_clear(llama.llama_get_memory(ctx), False)
    return 0


cdef int native_remove_positions(llama.llama_context *ctx, int32_t seq, int32_t start) except -1:
    """llama_memory_seq_rm (llama.h) from position `start` to the end."""
    if not llama.llama_memory_seq_rm(llama.llama_get_memory(ctx), seq, start, -1):
        raise _error(
            InvalidInputError, "this model's memory cannot be cut inside a sequence", "llama_memory_seq_rm")
    return 0


cdef int native_copy_sequence(llama.llama_context *ctx, int32_t src, int32_t dst, int32_t end) except -1:
    """llama_memory_seq_cp (llama.h): share cells, copy nothing."""
    llama.llama_memory_seq_cp(llama.llama_get_memory(ctx), src, dst, 0, end)
    return 0
