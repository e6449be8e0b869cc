# Part of _native: the vision encoder.


cdef mtmd.mtmd_context_params native_encoder_params() noexcept:
    return mtmd.mtmd_context_params_default()


cdef cbool _encode_step(ggml.ggml_tensor *tensor, cbool ask, void *watch) noexcept nogil:
    """mtmd's eval callback: stop after some nodes when the call was cancelled.

    The graph is computed in runs that end where this answers True to `ask`. A run ends every eighth
    node: 60 to 100 runs for ViT-L, each a few 10 us dearer than none, each a place to stop.
    """
    cdef Watch *w = <Watch *>watch
    if ask:
        w.step += 1
        return w.step % 8 == 0
    return not watch_stop(w)


# never freed: encoders of the whole process look into it
cdef llama.llama_model *_empty_vocabulary = NULL


cdef int _ensure_empty_vocabulary() except -1:
    """Load four tokens in place of a text model.

    Without any text model libmtmd leaves its position type uninitialised, and reads it (mtmd.cpp, pos_type).
    One of a vocabulary only initialises it, and is not held against the width of the rows.
    """
    from importlib import resources

    global _empty_vocabulary
    cdef bytes path
    cdef const char *c_path
    cdef llama.llama_model_params params = llama.llama_model_default_params()
    if _empty_vocabulary == NULL:
        with resources.as_file(resources.files("llava_native") / "empty_vocab.gguf") as file:
            path = os.fsencode(file)
            c_path = path
            params.vocab_only = True
            _empty_vocabulary = llama.llama_model_load_from_file(c_path, params)
        if _empty_vocabulary == NULL:
            raise _error(
                ModelLoadError, "the package's empty_vocab.gguf is damaged", "llama_model_load_from_file")
    return 0


cdef mtmd.mtmd_context *native_load_encoder(
    str path, mtmd.mtmd_context_params *params, str device, Watch *watch) except NULL:
    """mtmd_init_from_file (mtmd.h), with four tokens for a text model.

    `watch` must outlive the context; `device` names one of ``devices()``.
    """
    cdef bytes raw_path = path.encode("utf-8", "surrogateescape")
    cdef const char *c_path = raw_path
    cdef mtmd.mtmd_context *ctx = NULL
    _ensure_backend()
    _ensure_empty_vocabulary()
    if not params.use_gpu:  # on a GPU the callback would break up the device's own queue
        params.cb_eval = _encode_step
        params.cb_eval_user_data = watch
    elif device is not None:
        params.device = ggml.ggml_backend_dev_by_name(device.encode())
    params.progress_callback = watch_progress
    params.progress_callback_user_data = watch
    try:
        with nogil:
            ctx = mtmd.mtmd_init_from_file(c_path, _empty_vocabulary, params[0])
            release_team()  # it encoded something to warm up
    except _CPP_ERRORS as exc:
        raise _error(ModelLoadError, f"{path}: {exc}", "mtmd_init_from_file") from exc
    if ctx == NULL:
        watch_end(watch, f"loading {path}")
        raise _error(ModelLoadError, f"libmtmd could not load {path}", "mtmd_init_from_file")
    native_count("encoder", 1)
    try:
        _drain_log()  # runs handlers, and lets a Ctrl-C in
    except BaseException:
        native_free_encoder(ctx)
        raise
    return ctx


cdef void native_free_encoder(mtmd.mtmd_context *ctx) noexcept:
    with nogil:
        mtmd.mtmd_free(ctx)
    native_count("encoder", -1)


cdef int _encode_chunk(
    mtmd.mtmd_context *ctx, const mtmd.mtmd_input_chunk *chunk, EncodedRows *rows) except? -1 nogil:
    """Encode one chunk into a batch of its own, which owns its output."""
    cdef mtmd.mtmd_batch *batch = mtmd.mtmd_batch_init(ctx)
    cdef int rc = mtmd.mtmd_batch_add_chunk(batch, chunk)
    if rc == 0:
        rc = mtmd.mtmd_batch_encode(batch)
    rows.batch = batch
    rows.data = mtmd.mtmd_batch_get_output_embd(batch, chunk) if rc == 0 else NULL
    rows.n_tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
    return rc if rows.data != NULL else 1


cdef int _encode_bitmap(
    mtmd.mtmd_context *ctx, const mtmd.mtmd_bitmap *bitmap, mtmd.mtmd_input_chunks *chunks,
    vector[EncodedRows] *out, Watch *watch) except? -1 nogil:
    cdef mtmd.mtmd_input_part part
    cdef const mtmd.mtmd_input_part *parts = &part
    cdef const mtmd.mtmd_input_chunk *chunk
    cdef EncodedRows rows
    cdef size_t i
    part.text = NULL
    part.bitmap = bitmap
    cdef int rc = mtmd.mtmd_tokenize_from_parts(ctx, chunks, &parts, 1, False)
    if rc != 0:
        return 10 + rc
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            return 20
        rc = _encode_chunk(ctx, chunk, &rows)
        out.push_back(rows)
        if rc != 0 or watch_stop(watch):
            return rc
    return 0


cdef int native_encode(
    mtmd.mtmd_context *ctx, const unsigned char *rgb, uint32_t width, uint32_t height, int n_threads,
    vector[EncodedRows] *rows, Watch *watch) except -1:
    """Encode RGB pixels: mtmd_bitmap_init, mtmd_tokenize_from_parts, mtmd_batch_encode (mtmd.h).

    One entry of `rows` an image chunk (a tile); the caller frees their batches, also after an error.
    """
    cdef mtmd.mtmd_bitmap *bitmap = NULL
    cdef mtmd.mtmd_input_chunks *chunks = NULL
    cdef int rc
    watch.step = 0
    try:
        with nogil:
            _give_way()
            mtmd.mtmd_change_n_threads(ctx, n_threads)
            bitmap = mtmd.mtmd_bitmap_init(width, height, rgb)
            chunks = mtmd.mtmd_input_chunks_init()
            rc = _encode_bitmap(ctx, bitmap, chunks, rows, watch)
    except _CPP_ERRORS as exc:
        raise _error(EncodeError, f"the image could not be encoded: {exc}", "mtmd_batch_encode") from exc
    finally:
        with nogil:
            if chunks != NULL:
                mtmd.mtmd_input_chunks_free(chunks)
            if bitmap != NULL:
                mtmd.mtmd_bitmap_free(bitmap)
            release_team()  # the next image may be long in coming
    watch_end(watch, "encoding")
    if rc == 20:
        raise LlavaError("this encoder puts text tokens around its image rows, which is not supported")
    if rc >= 10:
        raise _error(
            EncodeError, f"libmtmd could not prepare a {width}x{height} image", "mtmd_tokenize_from_parts",
            rc - 10)
    if rc != 0:
        raise _error(EncodeError, "the image could not be encoded", "mtmd_batch_encode", rc)
    _drain_log()
    return 0


cdef void native_free_batch(mtmd.mtmd_batch *batch) noexcept:
    with nogil:
        mtmd.mtmd_batch_free(batch)
