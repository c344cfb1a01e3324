#include "packed_rows.h"

#include <atomic>

namespace ecoflap {
namespace {

// Sixteen rows lie together, by fours of columns: all of them are expanded for the one that is asked for.
struct Lookup {
  const Matrix &weight;
  const Path &path;
  const int64_t *ids;
  float *out;
  std::atomic<bool> damaged{false};

  static void one(void *work, size_t place) {
    Lookup &all = *static_cast<Lookup *>(work);
    const Matrix &w = all.weight;
    int64_t id = all.ids[place] < 0 ? all.ids[place] + w.outputs : all.ids[place];
    if (!all.read(id / kOutputs, id % kOutputs, all.out + int64_t(place) * w.inputs)) all.damaged = true;
  }

  bool read(int64_t block, int64_t row, float *to) const {
    alignas(64) uint8_t tile[kOutputs * kColumns * 4];
    const uint16_t *masks = weight.masks_of(block);
    const uint8_t *p = weight.values_of(block);
    float scale = weight.scales[block * kOutputs + row];
    for (int64_t first = 0; first < weight.inputs; first += kColumns) {
      p = path.expand(weight.type, masks + first, p, tile);
      int64_t columns = weight.inputs - first < kColumns ? weight.inputs - first : kColumns;
      for (int64_t c = 0; c < columns; ++c)
        to[first + c] = scale * float(int8_t(tile[c / 4 * 4 * kOutputs + 4 * row + c % 4]));
    }
    return p == weight.values_of(block + 1);
  }
};

}  // namespace

void PackedRows::compute(OrtKernelContext *context) const {
  const OrtValue *input;
  OrtValue *output;
  must(api_->KernelContext_GetInput(context, 0, &input));
  Tensor ids = opened(api_, input);
  const int64_t *wanted = static_cast<const int64_t *>(ids.data), count = ids.count();
  for (int64_t i = 0; i < count; ++i)
    refuse_if(wanted[i] < -weight_.outputs || wanted[i] >= weight_.outputs, "it has no row of a number that is asked for");
  std::vector<int64_t> sizes = ids.shape;
  sizes.push_back(weight_.inputs);
  must(api_->KernelContext_GetOutput(context, 0, sizes.data(), sizes.size(), &output));
  if (count == 0) return;
  Lookup work{weight_, *path_, wanted, static_cast<float *>(opened(api_, output).data)};
  if (count == 1)
    Lookup::one(&work, 0);
  else
    must(api_->KernelContext_ParallelFor(context, Lookup::one, size_t(count), 0, &work));
  refuse_if(work.damaged, "this is a damaged matrix: its masks do not fit its kept values");
}

}  // namespace ecoflap
