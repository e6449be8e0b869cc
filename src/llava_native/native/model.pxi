# Part of _native: models and vocabularies.

# their graphs take the rows of a token as they lie in the table, and look at nothing else of it
_PLAIN_EMBEDDINGS = frozenset({"llama", "phi3", "qwen2"})

cdef llama.llama_model_params native_model_params() noexcept:
    return llama.llama_model_default_params()


cdef int _fill_override(llama.llama_model_kv_override *target, str key, value) except -1:
    cdef bytes raw_key = key.encode()
    cdef bytes raw
    if len(raw_key) > 127:
        raise InvalidInputError(f"kv_overrides: the key {key!r} is longer than 127 bytes")
    memset(target, 0, sizeof(llama.llama_model_kv_override))
    strncpy(target.key, raw_key, 127)
    if isinstance(value, bool):
        target.tag = llama.LLAMA_KV_OVERRIDE_TYPE_BOOL
        target.val_bool = value
    elif isinstance(value, int):
        target.tag = llama.LLAMA_KV_OVERRIDE_TYPE_INT
        target.val_i64 = value
    elif isinstance(value, float):
        target.tag = llama.LLAMA_KV_OVERRIDE_TYPE_FLOAT
        target.val_f64 = value
    else:
        raw = str(value).encode()
        if len(raw) > 127:
            raise InvalidInputError(f"kv_overrides[{key!r}] is longer than 127 bytes")
        target.tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
        strncpy(target.val_str, raw, 127)
    return 0


cdef llama.llama_model *native_load_model(
    str path, llama.llama_model_params *params, list overrides, Watch *watch) except NULL:
    """llama_model_load_from_file (llama.h); `overrides` is a list of (key, value)."""
    cdef bytes raw_path = path.encode("utf-8", "surrogateescape")
    cdef const char *c_path = raw_path
    cdef vector[llama.llama_model_kv_override] kv
    cdef llama.llama_model *model = NULL
    _ensure_backend()
    if overrides:
        kv.resize(len(overrides) + 1)  # ended by an empty key
        for i, (key, value) in enumerate(overrides):
            _fill_override(&kv[i], key, value)
        kv[len(overrides)].key[0] = 0
        params.kv_overrides = kv.data()
    params.progress_callback = watch_progress
    params.progress_callback_user_data = watch
    try:
        with nogil:
            model = llama.llama_model_load_from_file(c_path, params[0])
    except _CPP_ERRORS as exc:
        raise _error(ModelLoadError, f"{path}: {exc}", "llama_model_load_from_file") from exc
    if model == NULL:
        watch_end(watch, f"loading {path}")
        raise _error(ModelLoadError, f"llama.cpp could not load {path}", "llama_model_load_from_file")
    native_count("model", 1)
    try:
        _drain_log()  # runs handlers, and lets a Ctrl-C in
    except BaseException:
        native_free_model(model)
        raise
    return model


cdef void native_free_model(llama.llama_model *model) noexcept:
    if native_is_sound(model):
        with nogil:
            llama.llama_model_free(model)
    native_count("model", -1)


cdef str _text(const char *raw):
    return raw.decode("utf-8", "replace") if raw != NULL else None


cdef dict _metadata(llama.llama_model *model):
    cdef char key[256]
    cdef vector[char] value
    cdef int32_t i, length
    cdef dict out = {}
    for i in range(llama.llama_model_meta_count(model)):
        llama.llama_model_meta_key_by_index(model, i, key, sizeof(key))
        length = llama.llama_model_meta_val_str_by_index(model, i, key, 0)
        value.resize(max(length, 0) + 1)
        llama.llama_model_meta_val_str_by_index(model, i, value.data(), value.size())
        out[_text(key)] = _text(value.data())
    return out


cdef dict native_model_info(llama.llama_model *model):
    """Everything that layer 3 keeps about a model, read once."""
    cdef const llama.llama_vocab *vocab = llama.llama_model_get_vocab(model)
    cdef char description[256]
    cdef dict metadata = _metadata(model)
    llama.llama_model_desc(model, description, sizeof(description))
    return {
        "description": _text(description),
        "metadata": metadata,
        "has_plain_embeddings": (
            metadata.get("general.architecture") in _PLAIN_EMBEDDINGS
            and llama.llama_token_rows(model, NULL, 0, NULL)),
        "chat_template": _text(llama.llama_model_chat_template(model, NULL)),
        "n_vocab": llama.llama_vocab_n_tokens(vocab),
        "n_embd": llama.llama_model_n_embd_inp(model),
        "n_layer": llama.llama_model_n_layer(model),
        "n_ctx_train": llama.llama_model_n_ctx_train(model),
        "n_params": llama.llama_model_n_params(model),
        "size_bytes": llama.llama_model_size(model),
        "vocab_is_none": llama.llama_vocab_type(vocab) == llama.LLAMA_VOCAB_TYPE_NONE,
        "is_spm": llama.llama_vocab_type(vocab) == llama.LLAMA_VOCAB_TYPE_SPM,
        "one_dimensional_rope": llama.llama_model_rope_type(model) in (
            llama.LLAMA_ROPE_TYPE_NONE, llama.LLAMA_ROPE_TYPE_NORM, llama.LLAMA_ROPE_TYPE_NEOX),
        "is_decoder_only": (
            llama.llama_model_has_decoder(model) and not llama.llama_model_has_encoder(model)),
        "is_recurrent": llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model),
        "bos": llama.llama_vocab_bos(vocab),
        "eos": llama.llama_vocab_eos(vocab),
        "eot": llama.llama_vocab_eot(vocab),
        "add_bos": llama.llama_vocab_get_add_bos(vocab),
    }


cdef list native_special_tokens(llama.llama_model *model):
    """[(text bytes, id, strips left, strips right)] of the control and user-defined tokens."""
    cdef const llama.llama_vocab *vocab = llama.llama_model_get_vocab(model)
    cdef int32_t token
    cdef int attr
    cdef list out = []
    for token in range(llama.llama_vocab_n_tokens(vocab)):
        attr = llama.llama_vocab_get_attr(vocab, token)
        if attr & (llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED):
            out.append((
                <bytes>llama.llama_vocab_get_text(vocab, token), token,
                bool(attr & llama.LLAMA_TOKEN_ATTR_LSTRIP), bool(attr & llama.LLAMA_TOKEN_ATTR_RSTRIP)))
    return out


cdef list native_tokenize(llama.llama_model *model, bytes text, bint add_special, bint parse_special):
    """llama_tokenize (llama.h)."""
    cdef const llama.llama_vocab *vocab = llama.llama_model_get_vocab(model)
    cdef const char *raw = text
    cdef int32_t length = len(text)
    cdef LastNet net
    cdef vector[llama.llama_token] ids
    cdef int32_t n
    native_check_sound(model)
    ids.resize(length + 8)  # never more tokens than bytes, and a few special ones
    net.hold()
    try:
        with nogil:
            n = llama.llama_tokenize(
                vocab, raw, length, ids.data(), <int32_t>ids.size(), add_special, parse_special)
            if n < 0 and n != INT32_MIN:
                ids.resize(-n)
                n = llama.llama_tokenize(
                    vocab, raw, length, ids.data(), <int32_t>ids.size(), add_special, parse_special)
    except _CPP_ERRORS as exc:
        raise _error_in(
            model, InvalidInputError, f"the text could not be tokenised: {exc}", "llama_tokenize") from exc
    if n < 0:
        raise _error(InvalidInputError, "the text is too long to be tokenised", "llama_tokenize", n)
    return [ids[i] for i in range(n)]


cdef bytes native_token_piece(llama.llama_model *model, int32_t token, bint special):
    """llama_token_to_piece (llama.h); the id must be in range."""
    cdef const llama.llama_vocab *vocab = llama.llama_model_get_vocab(model)
    cdef char small[128]
    cdef vector[char] large
    cdef int32_t n = llama.llama_token_to_piece(vocab, token, small, sizeof(small), 0, special)
    if n >= 0:
        return small[:n]
    large.resize(-n)
    n = llama.llama_token_to_piece(vocab, token, large.data(), <int32_t>large.size(), 0, special)
    return large.data()[:n]


cdef bytes native_detokenize(llama.llama_model *model, list ids, bint remove_special, bint unparse_special):
    """llama_detokenize (llama.h); the ids must be in range."""
    cdef const llama.llama_vocab *vocab = llama.llama_model_get_vocab(model)
    cdef vector[llama.llama_token] tokens = ids
    cdef vector[char] text
    cdef int32_t n
    text.resize(tokens.size() * 8 + 16)
    for _ in range(2):
        with nogil:
            n = llama.llama_detokenize(
                vocab, tokens.data(), <int32_t>tokens.size(), text.data(), <int32_t>text.size(),
                remove_special, unparse_special)
        if n >= 0:
            return text.data()[:n]
        text.resize(-n)
    raise _error(InvalidInputError, "the ids could not be turned into text", "llama_detokenize", n)


cdef bint native_is_eog(llama.llama_model *model, int32_t token) noexcept:
    return llama.llama_vocab_is_eog(llama.llama_model_get_vocab(model), token)


cdef int native_token_rows(
    llama.llama_model *model, const int32_t *tokens, Py_ssize_t n, float *out) except -1:
    """llama_model_get_tok_embd_rows (llama.h, patch 0015): write what a graph looks up, n * n_embd floats."""
    cdef cbool found
    with nogil:
        found = llama.llama_token_rows(model, tokens, <int32_t>n, out)
    if not found:
        raise _error(InvalidInputError, "no embeddings of these tokens", "llama_model_get_tok_embd_rows")
    return 0
