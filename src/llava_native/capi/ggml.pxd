# ggml.h and ggml-backend.h of the pinned llama.cpp: devices, logging, the abort callback.

from libcpp cimport bool as cbool

cdef extern from "ggml.h" nogil:
    enum ggml_log_level:
        GGML_LOG_LEVEL_NONE = 0
        GGML_LOG_LEVEL_DEBUG = 1
        GGML_LOG_LEVEL_INFO = 2
        GGML_LOG_LEVEL_WARN = 3
        GGML_LOG_LEVEL_ERROR = 4
        GGML_LOG_LEVEL_CONT = 5

    enum ggml_type:
        GGML_TYPE_F32
        GGML_TYPE_F16
        GGML_TYPE_Q8_0
        GGML_TYPE_BF16

    struct ggml_tensor:
        pass

    ctypedef void (*ggml_log_callback)(ggml_log_level level, const char *text, void *user_data) noexcept
    ctypedef cbool (*ggml_abort_callback)(void *data) noexcept
    ctypedef void (*ggml_abort_callback_t)(const char *error_message) noexcept
    ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback)

cdef extern from "ggml-backend.h" nogil:
    struct ggml_backend_device:
        pass
    struct ggml_backend_reg:
        pass
    ctypedef ggml_backend_device *ggml_backend_dev_t
    ctypedef ggml_backend_reg *ggml_backend_reg_t

    enum ggml_backend_dev_type:
        GGML_BACKEND_DEVICE_TYPE_CPU
        GGML_BACKEND_DEVICE_TYPE_GPU
        GGML_BACKEND_DEVICE_TYPE_IGPU
        GGML_BACKEND_DEVICE_TYPE_ACCEL

    struct ggml_backend_feature:
        const char *name
        const char *value

    ctypedef ggml_backend_feature *(*ggml_backend_get_features_t)(ggml_backend_reg_t reg) noexcept
    ctypedef cbool (*ggml_backend_sched_eval_callback)(ggml_tensor *t, cbool ask, void *user_data) noexcept

    size_t ggml_backend_dev_count() except +
    ggml_backend_dev_t ggml_backend_dev_by_type(ggml_backend_dev_type type) except +
    ggml_backend_dev_t ggml_backend_dev_get(size_t index) except +
    ggml_backend_dev_t ggml_backend_dev_by_name(const char *name) except +
    const char *ggml_backend_dev_name(ggml_backend_dev_t device)
    const char *ggml_backend_dev_description(ggml_backend_dev_t device)
    ggml_backend_dev_type ggml_backend_dev_get_type "ggml_backend_dev_type"(ggml_backend_dev_t device)
    void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t *free, size_t *total) except +
    ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device)
    const char *ggml_backend_reg_name(ggml_backend_reg_t reg)
    void *ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char *name)
