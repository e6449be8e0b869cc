# llama.h of the pinned llama.cpp. Functions that upstream does not wrap in try/catch are `except +`.

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool

from llava_native.capi.ggml cimport (
    ggml_abort_callback,
    ggml_backend_dev_t,
    ggml_backend_sched_eval_callback,
    ggml_log_callback,
    ggml_type,
)

cdef extern from "llama.h" nogil:
    struct llama_model:
        pass
    struct llama_context:
        pass
    struct llama_vocab:
        pass
    struct llama_sampler:
        pass
    struct llama_adapter_lora:
        pass
    struct llama_memory_i:
        pass
    ctypedef llama_memory_i *llama_memory_t
    ctypedef int32_t llama_pos
    ctypedef int32_t llama_token
    ctypedef int32_t llama_seq_id

    enum llama_vocab_type_t "llama_vocab_type":
        LLAMA_VOCAB_TYPE_NONE
        LLAMA_VOCAB_TYPE_SPM
        LLAMA_VOCAB_TYPE_BPE

    enum llama_rope_type:
        LLAMA_ROPE_TYPE_NONE
        LLAMA_ROPE_TYPE_NORM
        LLAMA_ROPE_TYPE_NEOX
        LLAMA_ROPE_TYPE_MROPE
        LLAMA_ROPE_TYPE_IMROPE
        LLAMA_ROPE_TYPE_VISION

    enum llama_token_attr:
        LLAMA_TOKEN_ATTR_UNDEFINED
        LLAMA_TOKEN_ATTR_UNKNOWN
        LLAMA_TOKEN_ATTR_UNUSED
        LLAMA_TOKEN_ATTR_NORMAL
        LLAMA_TOKEN_ATTR_CONTROL
        LLAMA_TOKEN_ATTR_USER_DEFINED
        LLAMA_TOKEN_ATTR_BYTE
        LLAMA_TOKEN_ATTR_NORMALIZED
        LLAMA_TOKEN_ATTR_LSTRIP
        LLAMA_TOKEN_ATTR_RSTRIP
        LLAMA_TOKEN_ATTR_SINGLE_WORD

    enum llama_flash_attn_type:
        LLAMA_FLASH_ATTN_TYPE_AUTO
        LLAMA_FLASH_ATTN_TYPE_DISABLED
        LLAMA_FLASH_ATTN_TYPE_ENABLED

    enum llama_load_mode:
        LLAMA_LOAD_MODE_AUTO
        LLAMA_LOAD_MODE_NONE
        LLAMA_LOAD_MODE_MMAP
        LLAMA_LOAD_MODE_MLOCK
        LLAMA_LOAD_MODE_MMAP_MLOCK
        LLAMA_LOAD_MODE_DIRECT_IO

    enum llama_model_kv_override_type:
        LLAMA_KV_OVERRIDE_TYPE_INT
        LLAMA_KV_OVERRIDE_TYPE_FLOAT
        LLAMA_KV_OVERRIDE_TYPE_BOOL
        LLAMA_KV_OVERRIDE_TYPE_STR

    struct llama_model_kv_override:
        llama_model_kv_override_type tag
        char key[128]
        int64_t val_i64
        double val_f64
        cbool val_bool
        char val_str[128]

    ctypedef cbool (*llama_progress_callback)(float progress, void *user_data) noexcept

    struct llama_model_params:
        ggml_backend_dev_t *devices
        int32_t n_gpu_layers
        llama_load_mode load_mode
        int32_t main_gpu
        llama_progress_callback progress_callback
        void *progress_callback_user_data
        const llama_model_kv_override *kv_overrides
        cbool vocab_only
        cbool check_tensors
        cbool use_extra_bufts

    struct llama_context_params:
        uint32_t n_ctx
        uint32_t n_batch
        uint32_t n_ubatch
        uint32_t n_seq_max
        uint32_t n_outputs_max
        int32_t n_threads
        int32_t n_threads_batch
        llama_flash_attn_type flash_attn_type
        float rope_freq_base
        float rope_freq_scale
        ggml_backend_sched_eval_callback cb_eval
        void *cb_eval_user_data
        ggml_type type_k
        ggml_type type_v
        ggml_abort_callback abort_callback
        void *abort_callback_data
        cbool embeddings
        cbool offload_kqv
        cbool no_perf
        cbool op_offload
        cbool kv_unified

    ctypedef struct llama_batch:
        int32_t n_tokens
        llama_token *token
        float *embd
        llama_pos *pos
        int32_t *n_seq_id
        llama_seq_id **seq_id
        int8_t *logits

    ctypedef struct llama_token_data:
        llama_token id
        float logit
        float p

    ctypedef struct llama_token_data_array:
        llama_token_data *data
        size_t size
        int64_t selected
        cbool sorted

    ctypedef struct llama_logit_bias:
        llama_token token
        float bias

    ctypedef struct llama_sampler_chain_params:
        cbool no_perf

    # library
    void llama_backend_init() except +
    void llama_log_set(ggml_log_callback callback, void *user_data)

    # model
    llama_model_params llama_model_default_params()
    llama_model *llama_model_load_from_file(const char *path_model, llama_model_params params) except +
    void llama_model_free(llama_model *model)
    const llama_vocab *llama_model_get_vocab(const llama_model *model)
    llama_rope_type llama_model_rope_type(const llama_model *model)
    int32_t llama_model_n_ctx_train(const llama_model *model)
    int32_t llama_model_n_embd_inp(const llama_model *model)
    int32_t llama_model_n_layer(const llama_model *model)
    int32_t llama_model_desc(const llama_model *model, char *buf, size_t buf_size) except +
    uint64_t llama_model_size(const llama_model *model)
    uint64_t llama_model_n_params(const llama_model *model)
    const char *llama_model_chat_template(const llama_model *model, const char *name) except +
    cbool llama_model_has_encoder(const llama_model *model)
    cbool llama_model_is_recurrent(const llama_model *model)
    cbool llama_model_is_hybrid(const llama_model *model)
    cbool llama_model_has_decoder(const llama_model *model)
    int32_t llama_model_meta_count(const llama_model *model)
    int32_t llama_model_meta_key_by_index(
        const llama_model *model, int32_t i, char *buf, size_t size) except +
    int32_t llama_model_meta_val_str_by_index(
        const llama_model *model, int32_t i, char *buf, size_t size) except +

    # vocabulary
    llama_vocab_type_t llama_vocab_type(const llama_vocab *vocab)
    int32_t llama_vocab_n_tokens(const llama_vocab *vocab)
    const char *llama_vocab_get_text(const llama_vocab *vocab, llama_token token) except +
    llama_token_attr llama_vocab_get_attr(const llama_vocab *vocab, llama_token token) except +
    cbool llama_vocab_is_eog(const llama_vocab *vocab, llama_token token)
    llama_token llama_vocab_bos(const llama_vocab *vocab)
    llama_token llama_vocab_eos(const llama_vocab *vocab)
    llama_token llama_vocab_eot(const llama_vocab *vocab)
    cbool llama_vocab_get_add_bos(const llama_vocab *vocab)
    int32_t llama_tokenize(
        const llama_vocab *vocab, const char *text, int32_t text_len,
        llama_token *tokens, int32_t n_tokens_max, cbool add_special, cbool parse_special) except +
    int32_t llama_token_to_piece(
        const llama_vocab *vocab, llama_token token, char *buf, int32_t length,
        int32_t lstrip, cbool special) except +
    int32_t llama_detokenize(
        const llama_vocab *vocab, const llama_token *tokens, int32_t n_tokens,
        char *text, int32_t text_len_max, cbool remove_special, cbool unparse_special) except +

    # adapters
    llama_adapter_lora *llama_adapter_lora_init(llama_model *model, const char *path_lora) except +
    void llama_adapter_lora_free(llama_adapter_lora *adapter)
    int32_t llama_set_adapters_lora(
        llama_context *ctx, llama_adapter_lora **adapters, size_t n_adapters, float *scales) except +

    # context
    llama_context_params llama_context_default_params()
    llama_context *llama_init_from_model(llama_model *model, llama_context_params params) except +
    void llama_free(llama_context *ctx)
    uint32_t llama_n_ctx(const llama_context *ctx)
    uint32_t llama_n_ctx_seq(const llama_context *ctx)
    uint32_t llama_n_batch(const llama_context *ctx)
    uint32_t llama_n_ubatch(const llama_context *ctx)
    uint32_t llama_n_seq_max(const llama_context *ctx)
    void llama_set_n_threads(llama_context *ctx, int32_t n_threads, int32_t n_threads_batch)
    llama_memory_t llama_get_memory(const llama_context *ctx)
    int32_t llama_decode(llama_context *ctx, llama_batch batch) except +
    void llama_synchronize(llama_context *ctx) except +
    float *llama_get_logits_ith(llama_context *ctx, int32_t i) except +
    void llama_memory_clear(llama_memory_t mem, cbool data) except +
    cbool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1) except +
    void llama_memory_seq_cp(
        llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) except +

    size_t llama_state_seq_get_size(llama_context *ctx, llama_seq_id seq_id) except +
    size_t llama_state_seq_get_data(
        llama_context *ctx, uint8_t *dst, size_t size, llama_seq_id seq_id) except +
    size_t llama_state_seq_set_data(
        llama_context *ctx, const uint8_t *src, size_t size, llama_seq_id dest_seq_id) except +

    # samplers; a chain owns what is added to it
    llama_sampler_chain_params llama_sampler_chain_default_params()
    llama_sampler *llama_sampler_chain_init(llama_sampler_chain_params params) except +
    void llama_sampler_chain_add(llama_sampler *chain, llama_sampler *smpl) except +
    void llama_sampler_free(llama_sampler *smpl)
    void llama_sampler_reset(llama_sampler *smpl) except +
    void llama_sampler_accept(llama_sampler *smpl, llama_token token) except +
    void llama_sampler_apply(llama_sampler *smpl, llama_token_data_array *cur_p) except +
    llama_sampler *llama_sampler_init_greedy() except +
    llama_sampler *llama_sampler_init_dist(uint32_t seed) except +
    llama_sampler *llama_sampler_init_top_k(int32_t k) except +
    llama_sampler *llama_sampler_init_top_p(float p, size_t min_keep) except +
    llama_sampler *llama_sampler_init_min_p(float p, size_t min_keep) except +
    llama_sampler *llama_sampler_init_typical(float p, size_t min_keep) except +
    llama_sampler *llama_sampler_init_temp(float t) except +
    llama_sampler *llama_sampler_init_xtc(float p, float t, size_t min_keep, uint32_t seed) except +
    llama_sampler *llama_sampler_init_mirostat(
        int32_t n_vocab, uint32_t seed, float tau, float eta, int32_t m) except +
    llama_sampler *llama_sampler_init_mirostat_v2(uint32_t seed, float tau, float eta) except +
    llama_sampler *llama_sampler_init_grammar(
        const llama_vocab *vocab, const char *grammar_str, const char *grammar_root) except +
    llama_sampler *llama_sampler_init_penalties(
        int32_t n_vocab, int32_t penalty_last_n, float penalty_repeat,
        float penalty_freq, float penalty_present) except +
    llama_sampler *llama_sampler_init_dry(
        const llama_vocab *vocab, float dry_multiplier, float dry_base, int32_t dry_allowed_length,
        int32_t dry_penalty_last_n, const char **seq_breakers, size_t num_breakers) except +
    llama_sampler *llama_sampler_init_logit_bias(
        int32_t n_vocab, int32_t n_logit_bias, const llama_logit_bias *logit_bias) except +

cdef extern from *:
    """
    // Our patch 0015 adds the function; with an unpatched llama.cpp text and image rows are evaluated apart.
    static inline bool llama_token_rows(
        const llama_model * model, const llama_token * tokens, int32_t n, float * out) {
    #ifdef LLAMA_HAS_TOK_EMBD_ROWS
        return llama_model_get_tok_embd_rows(model, tokens, n, out);
    #else
        (void) model; (void) tokens; (void) n; (void) out;
        return false;
    #endif
    }
    """
    cbool llama_token_rows(
        const llama_model *model, const llama_token *tokens, int32_t n, float *out) except + nogil
