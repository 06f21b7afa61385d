// Calls the operator by name, through the dispatcher.
#include <ATen/core/dispatch/Dispatcher.h>

#include "example.h"

int main() {
  using Signature = at::Tensor(
      at::TensorList, const at::Tensor&, const std::optional<at::Tensor>&,
      const std::optional<at::Tensor>&, at::ArrayRef<double>, c10::SymInt, c10::SymInt, int64_t,
      bool, bool, bool);
  const auto sa_roi_align = c10::Dispatcher::singleton()
                                .findSchemaOrThrow("shape_roi_align::sa_roi_align", "")
                                .typed<Signature>();
  const Example example;
  const at::Tensor pooled = sa_roi_align.call(
      {example.features}, example.rois, std::nullopt, example.prob_maps, {1.0}, 1, 1, 2, false,
      false, true);
  return report("call_operator", pooled);
}
