# LAYER 2: the checked calls. The only module that is linked to the libraries; the GIL is released here
# and nowhere above. No native return code leaves it: every failure is a Python exception.

from libc.stdint cimport int32_t, uint32_t
from libcpp.vector cimport vector

from llava_native._cancel cimport Watch
from llava_native.capi cimport llama, mtmd


cdef struct EncodedRows:
    # One encoded image. `batch` owns `data` and is the caller's to free with native_free_batch.
    mtmd.mtmd_batch *batch
    float *data
    size_t n_tokens


cdef int native_count(str kind, int change) except -1

cdef int native_check_sound(void *owner) except -1
cdef bint native_is_sound(void *owner) noexcept nogil

# model
cdef llama.llama_model *native_load_model(
    str path, llama.llama_model_params *params, list overrides, Watch *watch) except NULL
cdef void native_free_model(llama.llama_model *model) noexcept
cdef dict native_model_info(llama.llama_model *model)
cdef list native_special_tokens(llama.llama_model *model)
cdef list native_tokenize(llama.llama_model *model, bytes text, bint add_special, bint parse_special)
cdef bytes native_token_piece(llama.llama_model *model, int32_t token, bint special)
cdef bytes native_detokenize(llama.llama_model *model, list ids, bint remove_special, bint unparse_special)
cdef bint native_is_eog(llama.llama_model *model, int32_t token) noexcept
cdef int native_token_rows(
    llama.llama_model *model, const int32_t *tokens, Py_ssize_t n, float *out) except -1

# adapters
cdef llama.llama_adapter_lora *native_load_adapter(llama.llama_model *model, str path) except NULL
cdef void native_free_adapter(llama.llama_adapter_lora *adapter) noexcept
cdef int native_set_adapters(
    llama.llama_context *ctx, vector[llama.llama_adapter_lora *] *adapters, vector[float] *scales) except -1

# context
cdef llama.llama_context *native_new_context(
    llama.llama_model *model, llama.llama_context_params *params) except NULL
cdef void native_free_context(llama.llama_context *ctx) noexcept
cdef dict native_context_info(llama.llama_context *ctx)
cdef int native_decode(llama.llama_context *ctx, llama.llama_batch *batch, Watch *watch) except? -100
cdef float *native_logits(llama.llama_context *ctx, int32_t row) except NULL
cdef int native_clear_memory(llama.llama_context *ctx) except -1
cdef int native_remove_positions(llama.llama_context *ctx, int32_t seq, int32_t start) except -1
cdef int32_t native_roll_back(llama.llama_context *ctx, int32_t seq, int32_t n) except -1
cdef int native_copy_sequence(llama.llama_context *ctx, int32_t src, int32_t dst, int32_t end) except -1
cdef int native_set_threads(llama.llama_context *ctx, int32_t n_threads) except -1
cdef bytes native_get_state(llama.llama_context *ctx, int32_t seq)
cdef int native_set_state(
    llama.llama_context *ctx, int32_t seq, const unsigned char *state, size_t size) except -1

# encoder
cdef mtmd.mtmd_context *native_load_encoder(
    str path, mtmd.mtmd_context_params *params, str device, Watch *watch) except NULL
cdef void native_free_encoder(mtmd.mtmd_context *ctx) noexcept
cdef int native_encode(
    mtmd.mtmd_context *ctx, const unsigned char *rgb, uint32_t width, uint32_t height, int n_threads,
    vector[EncodedRows] *rows, Watch *watch) except -1
cdef void native_free_batch(mtmd.mtmd_batch *batch) noexcept

# sampler
cdef llama.llama_sampler *native_new_chain(llama.llama_model *model, object params) except NULL
cdef llama.llama_sampler *native_new_grammar(llama.llama_model *model, str grammar, str root) except NULL
cdef void native_free_samplers(llama.llama_sampler *chain, llama.llama_sampler *grammar) noexcept
cdef int native_reset_samplers(llama.llama_sampler *chain, llama.llama_sampler *grammar) except -1
cdef int native_accept(llama.llama_sampler *chain, llama.llama_sampler *grammar, int32_t token) except -1
cdef int32_t native_sample(
    llama.llama_sampler *chain, llama.llama_sampler *grammar, const float *logits,
    const unsigned char *mask, vector[llama.llama_token_data] *candidates) except? -1
cdef double native_log_sum_exp(const float *logits, Py_ssize_t n) noexcept nogil
cdef void native_top(const float *logits, Py_ssize_t n, Py_ssize_t top, int32_t *ids) noexcept nogil

# default parameters, for the other modules to fill in
cdef llama.llama_model_params native_model_params() noexcept
cdef llama.llama_context_params native_context_params(
    uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch, uint32_t n_seq_max, uint32_t n_outputs,
    int32_t n_threads, object flash_attn, str type_k, str type_v) except *
cdef mtmd.mtmd_context_params native_encoder_params() noexcept
