// Pools one box through torch's dispatcher. The arguments are in the order of csrc/schema.cpp.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <iostream>

int main() {
  const at::Tensor features = at::arange(16.0).view({1, 1, 4, 4});
  const at::Tensor box = at::tensor({0.0, 1.0, 1.0, 3.0, 3.0}).view({1, 5});  // image, x1 ... y2
  const at::Tensor prob_map = at::full({1, 28, 28}, 0.5);
  const c10::IValue one_feature_map;  // None: no levels
  torch::jit::Stack stack{c10::List<at::Tensor>({features}), box, one_feature_map, prob_map};
  torch::jit::push(stack, c10::List<double>({1.0}), 1, 1, 2, false, false, true);
  c10::Dispatcher::singleton()
      .findSchemaOrThrow("shape_roi_align::sa_roi_align", "")
      .callBoxed(stack);
  std::cout << "pooled: " << stack.at(0).toTensor().item<double>() << '\n';
}
