# Write _build_info.json: llama.cpp's commit, our patches and the hardware options of this build.

set(patches "")
if(NOT LLAVA_NATIVE_LLAMA_CPP)
  file(GLOB patch_files RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}/vendor/patches"
       "${CMAKE_CURRENT_SOURCE_DIR}/vendor/patches/*.patch")
  list(SORT patch_files)
  list(TRANSFORM patch_files REPLACE "(.+)\\.patch" "\"\\1\"")
  list(JOIN patch_files ", " patches)
endif()

get_cmake_property(variables CACHE_VARIABLES)
set(options "")
foreach(variable IN LISTS variables)
  # what was switched on, and what has a value: vendors, architectures
  if(variable MATCHES "^GGML_[A-Z0-9_]+$" AND NOT variable MATCHES "WARNINGS|_DEFAULT$|_DIR$"
     AND NOT "${${variable}}" MATCHES "^(|OFF|0|FALSE)$")
    list(APPEND options "\"${variable}\": \"${${variable}}\"")
  endif()
endforeach()
list(JOIN options ",\n    " options)

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
