// Forward: merges the taps of a box once, then applies them to its channels block by block.
#include <cstring>

#include "cpu/jobs.h"
#include "cpu/layout/pooled_writer.h"
#include "cpu/parallel.h"
#include "cpu/schedule.h"

namespace shape_roi_align::cpu {
namespace {

template <typename T, typename coord_t>
class Pooler {
 public:
  Pooler(const Params& params, const PooledTensor& output, BoxSpan<coord_t> boxes)
      : params_(params), boxes_(boxes), writer_(params, output) {}

  void pool(const WorkItem& item) {
    with_reader<T, coord_t>(item.reader, [&]<typename Reader>() {
      Reader(params_, item, boxes_, memory_.template of<Reader>()).pool(writer_);
    });
    finish_streaming();
  }

 private:
  const Params& params_;
  const BoxSpan<coord_t> boxes_;
  PooledWriter<T> writer_;
  ReaderMemory<T, coord_t> memory_;
};

}  // namespace

void forward(const Params& params, SortedBoxes sorted, const PooledTensor& output) {
  if (params.channels == 0) {
    return;
  }
  dispatch(params, [&](auto feature, auto coordinate) {
    using T = decltype(feature);
    using coord_t = decltype(coordinate);
    using Worker = Pooler<T, coord_t>;
    Boxes<coord_t>& boxes = std::get<Boxes<coord_t>>(sorted);
    const size_t bytes =
        sizeof(T) * params.channels * params.options.pooled_height * params.options.pooled_width;
    for (const int64_t k : boxes.unsampled) {
      std::memset(
          static_cast<void*>(static_cast<T*>(output.data) + k * output.box_stride), 0, bytes);
    }
    const Job job{params, true, element_rows(output, params.channels)};
    const std::vector<WorkItem> items = schedule<T, coord_t>(job, boxes.sampled);
    parallel_dynamic(
        static_cast<int64_t>(items.size()), [&] { return Worker(params, output, boxes.sampled); },
        [&](Worker& worker, int64_t i) { worker.pool(items[i]); });
  });
}

}  // namespace shape_roi_align::cpu
