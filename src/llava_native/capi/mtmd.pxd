# mtmd.h of the pinned llama.cpp: the vision encoder.

from libcpp cimport bool as cbool

from llava_native.capi.ggml cimport (
    ggml_backend_dev_t,
    ggml_backend_sched_eval_callback,
    ggml_log_callback,
)
from llava_native.capi.llama cimport llama_flash_attn_type, llama_model

cdef extern from "mtmd.h" nogil:
    struct mtmd_context:
        pass
    struct mtmd_bitmap:
        pass
    struct mtmd_input_chunk:
        pass
    struct mtmd_input_chunks:
        pass
    struct mtmd_batch:
        pass

    enum mtmd_input_chunk_type:
        MTMD_INPUT_CHUNK_TYPE_TEXT
        MTMD_INPUT_CHUNK_TYPE_IMAGE
        MTMD_INPUT_CHUNK_TYPE_AUDIO

    struct mtmd_input_text:
        pass

    struct mtmd_input_part:
        const mtmd_input_text *text
        const mtmd_bitmap *bitmap

    ctypedef cbool (*mtmd_progress_callback)(float progress, void *user_data) noexcept

    struct mtmd_context_params:
        cbool use_gpu
        ggml_backend_dev_t device
        cbool print_timings
        int n_threads
        llama_flash_attn_type flash_attn_type
        cbool warmup
        ggml_backend_sched_eval_callback cb_eval
        void *cb_eval_user_data
        mtmd_progress_callback progress_callback
        void *progress_callback_user_data

    mtmd_context_params mtmd_context_params_default()
    mtmd_context *mtmd_init_from_file(
        const char *mmproj_fname, const llama_model *text_model, mtmd_context_params params) except +
    void mtmd_free(mtmd_context *ctx)
    mtmd_bitmap *mtmd_bitmap_init(unsigned int nx, unsigned int ny, const unsigned char *data) except +
    void mtmd_bitmap_free(mtmd_bitmap *bitmap)
    mtmd_input_chunks *mtmd_input_chunks_init() except +
    size_t mtmd_input_chunks_size(const mtmd_input_chunks *chunks)
    const mtmd_input_chunk *mtmd_input_chunks_get(const mtmd_input_chunks *chunks, size_t idx)
    void mtmd_input_chunks_free(mtmd_input_chunks *chunks)
    mtmd_input_chunk_type mtmd_input_chunk_get_type(const mtmd_input_chunk *chunk)
    size_t mtmd_input_chunk_get_n_tokens(const mtmd_input_chunk *chunk)
    int mtmd_tokenize_from_parts(
        const mtmd_context *ctx, mtmd_input_chunks *output,
        const mtmd_input_part *const *parts, size_t n_parts, cbool add_special) except +
    mtmd_batch *mtmd_batch_init(mtmd_context *ctx) except +
    void mtmd_batch_free(mtmd_batch *batch)
    int mtmd_batch_add_chunk(mtmd_batch *batch, const mtmd_input_chunk *chunk) except +
    int mtmd_batch_encode(mtmd_batch *batch) except +
    float *mtmd_batch_get_output_embd(mtmd_batch *batch, const mtmd_input_chunk *chunk) except +
    void mtmd_log_set(ggml_log_callback log_callback, void *user_data)

cdef extern from *:
    """
    // Our patch 0003 adds the field; an unpatched llama.cpp (LLAVA_NATIVE_LLAMA_CPP) has none.
    static inline bool mtmd_params_set_weights_bf16(mtmd_context_params * params, bool value) {
    #ifdef MTMD_HAS_WEIGHTS_BF16
        params->weights_bf16 = value;
        return true;
    #else
        (void) params;
        return !value;
    #endif
    }
    """
    cbool mtmd_params_set_weights_bf16(mtmd_context_params *params, cbool value) nogil

cdef extern from *:
    """
    // Our patch 0008 adds the function; an unpatched llama.cpp encodes on as many threads as it began with.
    static inline void mtmd_change_n_threads(mtmd_context * ctx, int n_threads) {
    #ifdef MTMD_HAS_SET_N_THREADS
        mtmd_set_n_threads(ctx, n_threads);
    #else
        (void) ctx;
        (void) n_threads;
    #endif
    }
    """
    void mtmd_change_n_threads(mtmd_context *ctx, int n_threads) nogil
