# Part of _native: LoRA adapters. They change tables of the model, so the GIL is kept.

cdef llama.llama_adapter_lora *native_load_adapter(llama.llama_model *model, str path) except NULL:
    """llama_adapter_lora_init (llama.h)."""
    cdef bytes raw = os.fsencode(path)
    cdef llama.llama_adapter_lora *adapter
    try:
        adapter = llama.llama_adapter_lora_init(model, raw)
    except _CPP_ERRORS as exc:
        raise _error(ModelLoadError, f"{path}: {exc}", "llama_adapter_lora_init") from exc
    if adapter == NULL:
        raise _error(
            ModelLoadError, f"llama.cpp refused the adapter {path}", "llama_adapter_lora_init")
    native_count("adapter", 1)
    try:
        _drain_log()  # runs handlers, and lets a Ctrl-C in
    except BaseException:
        native_free_adapter(adapter)
        raise
    return adapter


cdef void native_free_adapter(llama.llama_adapter_lora *adapter) noexcept:
    llama.llama_adapter_lora_free(adapter)
    native_count("adapter", -1)


cdef int native_set_adapters(
    llama.llama_context *ctx, vector[llama.llama_adapter_lora *] *adapters, vector[float] *scales) except -1:
    """llama_set_adapters_lora (llama.h)."""
    cdef int32_t rc
    try:
        rc = llama.llama_set_adapters_lora(ctx, adapters.data(), adapters.size(), scales.data())
    except _CPP_ERRORS as exc:
        raise _error(ModelLoadError, f"the adapters: {exc}", "llama_set_adapters_lora") from exc
    if rc != 0:
        raise _error(ModelLoadError, "the adapters were refused", "llama_set_adapters_lora", rc)
    return 0
