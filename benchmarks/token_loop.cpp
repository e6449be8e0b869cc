// A C++ loop over the calls that a stream makes for each token, the measure of `bench_token.py`.
//
//     token_loop MODEL IS_COPIED FLASH_ATTN N_CTX N_SEQ N_THREADS N_TOKENS N_ROUNDS ID...
//
// Prints a line of microseconds a token for each round, whose prompt is ID...; ends of answers are never chosen. IS_COPIED: 1
// where weights are copied into another order (llama_model_params.use_extra_bufts); FLASH_ATTN: a llama_flash_attn_type.

#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

int main(int argc, char ** argv) {
    if (argc < 10) {
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model_params how = llama_model_default_params();
    how.use_extra_bufts    = atoi(argv[2]);
    llama_model * model    = llama_model_load_from_file(argv[1], how);
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = atoi(argv[4]);
    params.n_batch         = params.n_ctx;
    params.n_seq_max       = atoi(argv[5]);
    params.n_threads       = params.n_threads_batch = atoi(argv[6]);
    params.kv_unified      = true;
    params.no_perf         = true;
    params.flash_attn_type = (llama_flash_attn_type) atoi(argv[3]);
    llama_context * ctx = model ? llama_init_from_model(model, params) : nullptr;
    if (!ctx) {
        return 1;
    }
    const int n_tokens = atoi(argv[7]), n_rounds = atoi(argv[8]);
    std::vector<llama_token> prompt;
    for (int i = 9; i < argc; ++i) {
        prompt.push_back(atoi(argv[i]));
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_logit_bias> never;
    for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
        if (llama_vocab_is_eog(vocab, id)) {
            never.push_back({ id, -INFINITY });
        }
    }
    for (int round = 0; round < n_rounds; ++round) {
        llama_memory_clear(llama_get_memory(ctx), true);
        llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
        llama_sampler_chain_add(chain, llama_sampler_init_logit_bias(llama_vocab_n_tokens(vocab), (int) never.size(), never.data()));
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        if (llama_decode(ctx, llama_batch_get_one(prompt.data(), (int) prompt.size()))) {
            return 1;
        }
        llama_token token = llama_sampler_sample(chain, ctx, -1);
        std::string text;
        const auto began = std::chrono::steady_clock::now();
        for (int i = 1; i < n_tokens; ++i) {
            if (llama_decode(ctx, llama_batch_get_one(&token, 1))) {
                return 1;
            }
            token = llama_sampler_sample(chain, ctx, -1);
            char piece[256];
            text.append(piece, std::max(0, llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, false)));
        }
        const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - began;
        printf("%.2f\n", took.count() / (n_tokens - 1));
        fflush(stdout);
        llama_sampler_free(chain);
    }
    llama_free(ctx);
    llama_model_free(model);
}
