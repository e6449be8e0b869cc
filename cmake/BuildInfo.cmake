# Write _build_info.json: llama.cpp's commit, our patches and the hardware options of this build.

set(patches "")
if(NOT LLAVA_NATIVE_LLAMA_CPP)
  file(GLOB patch_files RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}/vendor/patches"
       "${CMAKE_CURRENT_SOURCE_DIR}/vendor/patches/*.patch")
  list(SORT patch_files)
  list(TRANSFORM patch_files REPLACE "(.+)\\.patch" "\"\\1\"")
  list(JOIN patch_files ", " patches)
endif()

# the options that a user chooses by; hundreds more have values that mean nothing on this machine
set(backends BLAS CANN CPU CUDA HIP METAL MUSA OPENCL OPENVINO RPC SYCL VULKAN WEBGPU ZENDNN)
set(others NATIVE OPENMP LLAMAFILE CPU_REPACK CPU_ALL_VARIANTS BACKEND_DL LTO BLAS_VENDOR
    AVX AVX2 AVX512 AVX512_BF16 AVX512_VNNI AVX_VNNI AMX_BF16 AMX_INT8 AMX_TILE BMI2 F16C FMA SSE42)
set(options "")
foreach(option IN LISTS backends others)
  set(value "${GGML_${option}}")
  if(value AND NOT (option STREQUAL "BLAS_VENDOR" AND NOT GGML_BLAS))
    string(APPEND options ",\n    \"GGML_${option}\": \"${value}\"")
  endif()
endforeach()
if(GGML_CUDA)
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
  string(APPEND options ",\n    \"CMAKE_CUDA_ARCHITECTURES\": \"${architectures}\"")
endif()
string(REGEX REPLACE "^,\n *" "" options "${options}")

file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/_build_info.json" CONTENT [[{
  "llama_cpp_commit": "@LLAMA_BUILD_COMMIT@",
  "llama_cpp_source": "@LLAVA_NATIVE_LLAMA_CPP@",
  "patches": [@patches@],
  "compiler": "@CMAKE_CXX_COMPILER_ID@ @CMAKE_CXX_COMPILER_VERSION@",
  "build_type": "@CMAKE_BUILD_TYPE@",
  "sanitize": "@LLAVA_NATIVE_SANITIZE@",
  "options": {
    @options@
  }
}
]] @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/_build_info.json" DESTINATION llava_native COMPONENT llava_native)
