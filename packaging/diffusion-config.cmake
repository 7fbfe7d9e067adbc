# find_package(diffusion CONFIG) defines the imported target diffusion::diffusion: the C header and the C++17 header
# (diffusion.hpp), and the shared library. Relocatable: every path follows from where this file lies.
get_filename_component(_diffusion_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT EXISTS "${_diffusion_prefix}/lib/libdiffusion.so.0")
  set(diffusion_FOUND FALSE)
  set(diffusion_NOT_FOUND_MESSAGE "${_diffusion_prefix}/lib/libdiffusion.so.0 is not there: the installation is incomplete")
elseif(NOT TARGET diffusion::diffusion)
  add_library(diffusion::diffusion SHARED IMPORTED)
  set_target_properties(diffusion::diffusion PROPERTIES
    IMPORTED_LOCATION "${_diffusion_prefix}/lib/libdiffusion.so.0"
    IMPORTED_SONAME libdiffusion.so.0
    INTERFACE_INCLUDE_DIRECTORIES "${_diffusion_prefix}/include")
endif()
unset(_diffusion_prefix)
