// Runs the AOTInductor package that export_package.py wrote, without Python.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "example.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: run_package PACKAGE.pt2\n");
    return 2;
  }
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  const Example example;
  return report(
      "run_package", loader.run({example.features, example.rois, example.prob_maps}).at(0));
}
