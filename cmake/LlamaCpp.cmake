# llama.cpp as static, hidden targets: llama, mtmd, ggml. Every GGML_* option is the user's to set.

set(checkout "$ENV{LLAVA_NATIVE_LLAMA_CPP}")
if(NOT checkout STREQUAL "${LLAVA_NATIVE_LLAMA_CPP_BEFORE}")  # also in a build folder that is used again
  set(LLAVA_NATIVE_LLAMA_CPP "${checkout}" CACHE PATH "" FORCE)
  set(LLAVA_NATIVE_LLAMA_CPP_BEFORE "${checkout}" CACHE INTERNAL "The variable's value when this was configured")
endif()
set(LLAVA_NATIVE_LLAMA_CPP "" CACHE PATH "Your own llama.cpp checkout, built as it is")
if(LLAVA_NATIVE_LLAMA_CPP)
  set(LLAMA_CPP_DIR "${LLAVA_NATIVE_LLAMA_CPP}")
else()
  set(LLAMA_CPP_DIR "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp")
  execute_process(COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/vendor/fetch.py"
                  COMMAND_ERROR_IS_FATAL ANY)
  # a changed pin or patch configures again, and so fills the folder again
  file(GLOB pin CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/vendor/patches/*.patch")
  list(APPEND pin "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp.toml")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${pin})
  file(STRINGS "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp.toml" commit REGEX "^commit = ")
  string(REGEX REPLACE "^commit = \"(.*)\"$" "\\1" LLAMA_BUILD_COMMIT "${commit}")
  set(LLAMA_BUILD_NUMBER 0)  # else counted from whichever git repository this folder lies in
endif()

# SOURCE_DATE_EPOCH turns GGML_NATIVE off silently, and with it every SIMD flag: never leave it to that
option(GGML_NATIVE "Use all instructions of this machine" ON)

set(BUILD_SHARED_LIBS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(LLAMA_BUILD_MTMD ON)
set(LLAMA_OPENSSL OFF)
set(MTMD_VIDEO OFF)
if(NOT MSVC)
  # __FILE__ in an assertion's message must not name the folders of the machine that built the wheel
  foreach(map IN ITEMS "${CMAKE_CURRENT_SOURCE_DIR}/=" "${LLAMA_CPP_DIR}/=vendor/llama.cpp/")
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX,OBJC,OBJCXX>:-ffile-prefix-map=${map}>"
                        "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffile-prefix-map=${map}>")
  endforeach()
  # sections: the linker drops what no call reaches; exceptions: C frames may be unwound by an abort
  add_compile_options(-ffunction-sections -fdata-sections "$<$<COMPILE_LANGUAGE:C>:-fexceptions>")
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # unique symbols are shared by a whole process, in spite of hidden visibility
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fno-gnu-unique>")
endif()

add_subdirectory("${LLAMA_CPP_DIR}" "${CMAKE_CURRENT_BINARY_DIR}/llama.cpp" EXCLUDE_FROM_ALL SYSTEM)
