# One switch for our modules and for llama.cpp: -C cmake.define.LLAVA_NATIVE_SANITIZE=address,undefined
set(LLAVA_NATIVE_SANITIZE "" CACHE STRING "Sanitizers to build with, as -fsanitize= takes them")
if(LLAVA_NATIVE_SANITIZE)
  add_compile_options(-fsanitize=${LLAVA_NATIVE_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${LLAVA_NATIVE_SANITIZE})
endif()
