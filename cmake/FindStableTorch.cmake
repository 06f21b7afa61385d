# Finds the parts of torch that stable-ABI code needs: the headers, libtorch_cpu (StableTorch::cpu)
# and, if torch has it, libtorch_cuda (StableTorch::cuda). find_package(Torch) requires more: with a
# CUDA build of torch, it also requires the CUDA toolkit of torch's own version.
#
# Looks in StableTorch_ROOT and CMAKE_PREFIX_PATH, then in the torch of the Python that CMake finds.
if(NOT StableTorch_ROOT AND NOT StableTorch_INCLUDE_DIR)
  find_package(Python QUIET COMPONENTS Interpreter)
  if(Python_FOUND)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c "import torch; print(*torch.__path__)"
      OUTPUT_VARIABLE torch_of_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()

# CMAKE_PREFIX_PATH usually is torch.utils.cmake_prefix_path. The suffix leads from there to torch.
find_path(StableTorch_INCLUDE_DIR torch/csrc/stable/library.h
  HINTS "${torch_of_python}/include" PATH_SUFFIXES ../../include)
find_library(StableTorch_CPU_LIBRARY torch_cpu
  HINTS "${torch_of_python}/lib" PATH_SUFFIXES ../../lib)
find_library(StableTorch_CUDA_LIBRARY torch_cuda
  HINTS "${torch_of_python}/lib" PATH_SUFFIXES ../../lib)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  StableTorch REQUIRED_VARS StableTorch_INCLUDE_DIR StableTorch_CPU_LIBRARY)

foreach(device cpu cuda)
  string(TOUPPER ${device} DEVICE)
  if(StableTorch_FOUND AND StableTorch_${DEVICE}_LIBRARY AND NOT TARGET StableTorch::${device})
    add_library(StableTorch::${device} SHARED IMPORTED)
    set_target_properties(StableTorch::${device} PROPERTIES
      IMPORTED_LOCATION "${StableTorch_${DEVICE}_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${StableTorch_INCLUDE_DIR}")
  endif()
endforeach()
