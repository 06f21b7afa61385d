// Prints csrc/cuda/launch_error.h's message. usage: launch_error NAME MAJOR MINOR ARCHITECTURES
#include "cuda/launch_error.h"

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 5) {
    return 2;
  }
  const std::string explanation = shape_roi_align::cuda::explain_launch_error(
      argv[1], std::atoi(argv[2]), std::atoi(argv[3]), argv[4]);
  std::fputs(explanation.c_str(), stdout);
}
