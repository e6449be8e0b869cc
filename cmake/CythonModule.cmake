# llava_native_module(name [LINK targets...]): one abi3 extension module from src/llava_native/name.pyx

set(LLAVA_NATIVE_SOURCE "${CMAKE_CURRENT_SOURCE_DIR}/src/llava_native")
add_custom_target(llava_native_modules)

function(llava_native_module name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "LINK")
  cython_transpile("${LLAVA_NATIVE_SOURCE}/${name}.pyx" LANGUAGE CXX
                   MODULE_NAME "llava_native.${name}"
                   INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/src"
                   OUTPUT_VARIABLE source)
  Python_add_library(${name} MODULE USE_SABI 3.11 WITH_SOABI "${source}")
  target_compile_features(${name} PRIVATE cxx_std_17)
  target_compile_definitions(${name} PRIVATE CYTHON_LIMITED_API=1)
  # the headers of every module, the code of only those that link
  target_include_directories(${name} PRIVATE "$<TARGET_PROPERTY:mtmd,INTERFACE_INCLUDE_DIRECTORIES>"
                             "$<TARGET_PROPERTY:llama,INTERFACE_INCLUDE_DIRECTORIES>"
                             "$<TARGET_PROPERTY:ggml,INTERFACE_INCLUDE_DIRECTORIES>"
                             "${LLAVA_NATIVE_SOURCE}")
  target_link_libraries(${name} PRIVATE ${ARG_LINK})
  if(APPLE)
    target_link_options(${name} PRIVATE -Wl,-dead_strip "LINKER:-exported_symbol,_PyInit_${name}")
  elseif(UNIX)
    # another ggml may live in the same process: nothing but PyInit leaves this module
    target_link_options(${name} PRIVATE "LINKER:--exclude-libs,ALL" "LINKER:--gc-sections"
                        "LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map")
    set_property(TARGET ${name} APPEND PROPERTY LINK_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map")
    if(CMAKE_BUILD_TYPE STREQUAL "Release")
      target_link_options(${name} PRIVATE "LINKER:--strip-all")
    endif()
  endif()
  install(TARGETS ${name} DESTINATION llava_native COMPONENT llava_native)
  add_dependencies(llava_native_modules ${name})
endfunction()
