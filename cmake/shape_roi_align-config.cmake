include(CMakeFindDependencyMacro)
list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
find_dependency(StableTorch)
include("${CMAKE_CURRENT_LIST_DIR}/shape_roi_align-targets.cmake")
