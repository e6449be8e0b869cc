# Part of _native: sampler chains and grammars.

cdef int _add(llama.llama_sampler *chain, llama.llama_sampler *part, str what) except -1:
    """llama_sampler_chain_add (llama.h): the chain owns `part` from here on."""
    if part == NULL:
        raise _error(InvalidInputError, f"the {what} sampler was refused", f"llama_sampler_init_{what}")
    llama.llama_sampler_chain_add(chain, part)
    return 0


cdef int _add_logit_bias(llama.llama_sampler *chain, int32_t n_vocab, dict logit_bias) except -1:
    cdef vector[llama.llama_logit_bias] biases
    cdef llama.llama_logit_bias bias
    for token, value in logit_bias.items():
        bias.token = token
        bias.bias = value
        biases.push_back(bias)
    return _add(
        chain, llama.llama_sampler_init_logit_bias(n_vocab, <int32_t>biases.size(), biases.data()),
        "logit_bias")


cdef int _add_dry(
    llama.llama_sampler *chain, const llama.llama_vocab *vocab, params, int32_t last_n) except -1:
    cdef list raw = [text.encode() for text in params.dry_sequence_breakers]
    cdef vector[const char *] breakers
    for text in raw:
        breakers.push_back(<const char *><bytes>text)
    return _add(
        chain,
        llama.llama_sampler_init_dry(
            vocab, params.dry_multiplier, params.dry_base, params.dry_allowed_length, last_n,
            breakers.data(), breakers.size()),
        "dry")


cdef int _add_truncation(llama.llama_sampler *chain, params) except -1:
    """The samplers that narrow the candidates, in llama.cpp's own order."""
    if params.top_k > 0:
        _add(chain, llama.llama_sampler_init_top_k(params.top_k), "top_k")
    if params.typical_p < 1.0:
        _add(chain, llama.llama_sampler_init_typical(params.typical_p, 1), "typical")
    if params.top_p < 1.0:
        _add(chain, llama.llama_sampler_init_top_p(params.top_p, 1), "top_p")
    if params.min_p > 0.0:
        _add(chain, llama.llama_sampler_init_min_p(params.min_p, 1), "min_p")
    if params.xtc_probability > 0.0:
        _add(
            chain,
            llama.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, params.seed), "xtc")
    return 0


cdef int _fill_chain(llama.llama_sampler *chain, llama.llama_model *model, params) except -1:
    cdef const llama.llama_vocab *vocab = llama.llama_model_get_vocab(model)
    cdef int32_t n_vocab = llama.llama_vocab_n_tokens(vocab)
    # a file may claim any; the samplers take the memory for all of them at once
    cdef int32_t n_ctx_train = max(0, min(llama.llama_model_n_ctx_train(model), 1 << 24))
    cdef uint32_t seed = params.seed
    if params.logit_bias:
        _add_logit_bias(chain, n_vocab, dict(params.logit_bias))
    if params.has_penalties:
        _add(
            chain,
            llama.llama_sampler_init_penalties(
                n_vocab, n_ctx_train if params.repeat_last_n < 0 else params.repeat_last_n,
                params.repeat_penalty, params.frequency_penalty, params.presence_penalty),
            "penalties")
    if params.dry_multiplier > 0.0:
        last_n = n_ctx_train if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
        _add_dry(chain, vocab, params, last_n)
    if params.temperature <= 0.0:
        _add(chain, llama.llama_sampler_init_top_k(1), "top_k")  # the same one, a third sooner
        return _add(chain, llama.llama_sampler_init_greedy(), "greedy")
    if params.mirostat_mode:
        _add(chain, llama.llama_sampler_init_temp(params.temperature), "temp")
        if params.mirostat_mode == 1:
            return _add(
                chain,
                llama.llama_sampler_init_mirostat(
                    n_vocab, seed, params.mirostat_tau, params.mirostat_eta, 100),
                "mirostat")
        return _add(
            chain, llama.llama_sampler_init_mirostat_v2(seed, params.mirostat_tau, params.mirostat_eta),
            "mirostat_v2")
    _add_truncation(chain, params)
    _add(chain, llama.llama_sampler_init_temp(params.temperature), "temp")
    return _add(chain, llama.llama_sampler_init_dist(seed), "dist")


cdef llama.llama_sampler *native_new_chain(llama.llama_model *model, object params) except NULL:
    """A llama_sampler_chain_init chain of what SamplingParams asks for; it always ends in a selection."""
    cdef llama.llama_sampler *chain = llama.llama_sampler_chain_init(
        llama.llama_sampler_chain_default_params())
    try:
        _fill_chain(chain, model, params)
    except BaseException:
        llama.llama_sampler_free(chain)
        raise
    native_count("sampler", 1)
    return chain


cdef llama.llama_sampler *native_new_grammar(llama.llama_model *model, str grammar, str root) except NULL:
    """llama_sampler_init_grammar (llama.h)."""
    cdef bytes raw_grammar = grammar.encode()
    cdef bytes raw_root = root.encode()
    cdef const char *c_grammar = raw_grammar
    cdef const char *c_root = raw_root
    cdef llama.llama_sampler *sampler = NULL
    cdef LastNet net
    if "\0" in root:
        raise GrammarError("the grammar's root has a NUL in it")
    check_grammar(grammar)
    net.hold()
    try:
        with nogil:
            sampler = llama.llama_sampler_init_grammar(llama.llama_model_get_vocab(model), c_grammar, c_root)
    except _CPP_ERRORS as exc:
        raise _error(GrammarError, f"the grammar was refused: {exc}", "llama_sampler_init_grammar") from exc
    if sampler == NULL:
        raise _error(
            GrammarError, f"the grammar does not parse, or has no rule {root!r}",
            "llama_sampler_init_grammar")
    native_count("sampler", 1)
    return sampler


cdef void native_free_samplers(llama.llama_sampler *chain, llama.llama_sampler *grammar) noexcept:
    """llama_sampler_free (llama.h) of both; `grammar` may be NULL."""
    if native_is_sound(chain):
        with nogil:
            llama.llama_sampler_free(chain)
            if grammar != NULL:
                llama.llama_sampler_free(grammar)
    native_count("sampler", -1 if grammar == NULL else -2)


cdef int native_reset_samplers(llama.llama_sampler *chain, llama.llama_sampler *grammar) except -1:
    """llama_sampler_reset (llama.h) of both; `grammar` may be NULL."""
    cdef LastNet net
    net.hold()
    try:
        with nogil:
            llama.llama_sampler_reset(chain)
            if grammar != NULL:
                llama.llama_sampler_reset(grammar)
    except _CPP_ERRORS as exc:
        raise _error_in(chain, LlavaError, f"it cannot be reset: {exc}", "llama_sampler_reset") from exc
    return 0


cdef int native_accept(llama.llama_sampler *chain, llama.llama_sampler *grammar, int32_t token) except -1:
    """llama_sampler_accept (llama.h); `grammar` may be NULL.

    The grammar is asked first: upstream aborts on an end-of-generation token that comes too early, and a
    grammar that has thrown has no rule left to go on from.
    """
    cdef LastNet net
    cdef bint allowed
    net.hold()
    try:
        with nogil:
            allowed = grammar == NULL or _allows(grammar, token)
            if allowed:
                if grammar != NULL:
                    llama.llama_sampler_accept(grammar, token)
                llama.llama_sampler_accept(chain, token)
    except _CPP_ERRORS as exc:
        raise _error_in(
            chain, GrammarError, f"the grammar forbids this token: {exc}", "llama_sampler_accept") from exc
    if not allowed:
        raise GrammarError(f"the grammar forbids token {token} here")
    return 0


cdef void _fill_candidates(
    const float *logits, const unsigned char *mask, vector[llama.llama_token_data] *candidates,
    llama.llama_token_data_array *array) noexcept nogil:
    """List the tokens whose bit is set in `mask`, all where it is NULL."""
    cdef size_t i, n = 0
    cdef llama.llama_token_data *data = candidates.data()
    for i in range(candidates.size()):
        if mask != NULL and not (mask[i >> 3] >> (i & 7)) & 1:
            continue
        data[n].id = <int32_t>i
        data[n].logit = logits[i]
        data[n].p = 0.0
        n += 1
    array.data = data
    array.size = n
    array.selected = -1
    array.sorted = False


cdef int32_t _select(llama.llama_token_data_array *array) noexcept nogil:
    if array.selected < 0 or array.selected >= <long long>array.size:
        return -1
    return array.data[array.selected].id


cdef cbool _allows(llama.llama_sampler *grammar, int32_t token) except? False nogil:
    """Whether the grammar lets one token through; much cheaper than filtering the whole vocabulary."""
    cdef llama.llama_token_data one
    cdef llama.llama_token_data_array array
    one.id = token
    one.logit = 1.0
    one.p = 0.0
    array.data = &one
    array.size = 1
    array.selected = -1
    array.sorted = False
    llama.llama_sampler_apply(grammar, &array)
    return one.logit > -1e30


cdef int32_t native_sample(
    llama.llama_sampler *chain, llama.llama_sampler *grammar, const float *logits,
    const unsigned char *mask, vector[llama.llama_token_data] *candidates) except? -1:
    """llama_sampler_apply (llama.h) on a copy of the logits; `grammar` and `mask` may be NULL.

    As llama.cpp's own programs do: sample first, and only when the grammar forbids the token, filter the
    whole vocabulary and sample again.
    """
    cdef LastNet net
    cdef llama.llama_token_data_array array
    cdef int32_t token
    net.hold()
    try:
        with nogil:
            _fill_candidates(logits, mask, candidates, &array)
            token = -1
            if array.size:  # the samplers abort on none
                llama.llama_sampler_apply(chain, &array)
                token = _select(&array)
            if grammar != NULL and array.size and (token < 0 or not _allows(grammar, token)):
                _fill_candidates(logits, mask, candidates, &array)
                llama.llama_sampler_apply(grammar, &array)
                llama.llama_sampler_apply(chain, &array)
                token = _select(&array)
                if token >= 0 and not _allows(grammar, token):
                    token = -1
    except _CPP_ERRORS as exc:
        raise _error_in(
            chain, GrammarError, f"sampling failed: {exc}", "llama_sampler_apply") from exc
    if token < 0:
        raise _error(
            GrammarError, "no token is left to choose: the grammar forbids all", "llama_sampler_apply")
    return token


cdef double native_log_sum_exp(const float *logits, Py_ssize_t n) noexcept nogil:
    """The logarithm of the sum of all tokens' exponentials: a logit less this is a log-probability."""
    cdef double highest = logits[0]
    cdef double total = 0.0
    cdef Py_ssize_t i
    for i in range(n):
        highest = max(highest, logits[i])
    for i in range(n):
        total += exp(logits[i] - highest)
    return highest + log(total)


cdef void native_top(const float *logits, Py_ssize_t n, Py_ssize_t top, int32_t *ids) noexcept nogil:
    """Write the ids of the `top` largest logits, the largest first; there must be so many."""
    cdef Py_ssize_t i, place, found = 0
    for i in range(n):
        if found == top and logits[i] <= logits[ids[found - 1]]:
            continue
        place = found if found < top else top - 1
        while place > 0 and logits[ids[place - 1]] < logits[i]:
            ids[place] = ids[place - 1]
            place -= 1
        ids[place] = <int32_t>i
        found = min(found + 1, top)
