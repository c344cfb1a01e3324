#include "packed_linear.h"

#include <atomic>

#include "../src/tiles.h"
#include "huge_pages.h"

namespace ecoflap {
namespace {

// Less than this many bytes are read before another thread has woken up.
constexpr int64_t kWorthwhile = 1 << 16;

// x as a path reads it: rows filled up with zeros, and those that are multiplied together pair of columns by pair of
// columns. One row that is so already is left where it is.
const float *arranged(const float *x, int64_t batch, const Matrix &w, int64_t most, std::vector<float> &to) {
  if (batch == 1 && w.padded == w.inputs) return x;
  to.assign(size_t(batch * w.padded), 0.0f);
  for (int64_t first = 0, together; first < batch; first += together) {
    together = rows_from(first, batch, most);
    float *group = to.data() + first * w.padded;
    for (int64_t row = 0; row < together; ++row)
      for (int64_t k = 0; k < w.inputs; ++k)
        group[k / 2 * 2 * together + 2 * row + k % 2] = x[(first + row) * w.inputs + k];
  }
  return to.data();
}

// How many blocks are given out at a time: half a panel, for how many threads take them is not known here; otherwise so many
// that it is worth a thread's while.
int64_t blocks_of_share(const Path &path, const Matrix &w, int64_t batch) {
  if (lies_in_tiles(path, w, batch)) return blocks_of_panel(bands_of(w, batch)) / 2;
  int64_t bytes = (w.kept * size_of(w.type) / w.blocks + 2 * w.padded + 1) * batch;
  return bytes > kWorthwhile ? 1 : kWorthwhile / bytes;
}

struct Work {
  const Path &path;
  const Task &task;
  int64_t each;  // blocks that are done at a time
  bool all_finite;
  std::atomic<bool> damaged{false};

  static void one(void *work, size_t share) {
    Work &all = *static_cast<Work *>(work);
    int64_t first = int64_t(share) * all.each, end = first + all.each, blocks = all.task.weight.blocks;
    if (!multiplied(all.path, all.task, all.all_finite, first, end < blocks ? end : blocks)) all.damaged = true;
  }
};

}  // namespace

template <bool kScaled>
PackedLinear<kScaled>::PackedLinear(const OrtApi *api, const OrtKernelInfo *info) : StoredMatrix(api, info, kScaled) {
  if (kScaled) {
    sums_.assign(size_t(weight_.blocks * kOutputs), 0);
    for (int64_t block = 0; block < weight_.blocks; ++block)
      add_up(weight_, block, path_->expand, sums_.data() + block * kOutputs);
    weight_.sums = sums_.data();
  }
  put_into_huge_pages(weight_.values, size_t(value_bytes_));
  put_into_huge_pages(weight_.masks, size_t(2 * weight_.blocks * weight_.padded));
}

template <bool kScaled>
void PackedLinear<kScaled>::compute(OrtKernelContext *context) const {
  const OrtValue *input;
  OrtValue *output;
  must(api_->KernelContext_GetInput(context, 0, &input));
  Tensor x = opened(api_, input);
  refuse_if(x.shape.empty() || x.shape.back() != weight_.inputs, "x has another number of inputs than it has");
  std::vector<int64_t> sizes = x.shape;
  sizes.back() = 1;
  int64_t batch = Tensor{x.type, sizes, nullptr}.count();
  sizes.back() = weight_.outputs;
  must(api_->KernelContext_GetOutput(context, 0, sizes.data(), sizes.size(), &output));
  multiply(context, static_cast<const float *>(x.data), batch, static_cast<float *>(opened(api_, output).data));
}

template <bool kScaled>
void PackedLinear<kScaled>::multiply(OrtKernelContext *context, const float *x, int64_t batch, float *y) const {
  const Matrix &w = weight_;
  if (w.outputs == 0) return;
  int64_t each = is_int8(w.type) ? rows_at_a_time(*path_, w, batch) : batch;
  for (int64_t first = 0; first < batch; first += each) {
    int64_t rows = batch - first < each ? batch - first : each;
    multiply_some(context, x + first * w.inputs, rows, y + first * w.outputs);
  }
}

template <bool kScaled>
void PackedLinear<kScaled>::multiply_some(OrtKernelContext *context, const float *x, int64_t batch, float *y) const {
  const Matrix &w = weight_;
  std::vector<float> memory;
  Task task = {};
  task.weight = w, task.batch = batch, task.y = y, task.in_out = ECOFLAP_FLOAT32;
  task.given = x, task.stride = w.inputs;
  if (is_int8(w.type))
    round_rows(&task, *path_, memory_for_x(rounded_bytes(*path_, w, batch)), 1);
  else
    task.x = arranged(x, batch, w, path_->rows[kind_of(w.type)], memory);
  Work work{*path_, task, blocks_of_share(*path_, w, batch), all_finite(task)};
  int64_t shares = (w.blocks + work.each - 1) / work.each;
  if (shares == 1)
    Work::one(&work, 0);
  else
    must(api_->KernelContext_ParallelFor(context, Work::one, size_t(shares), 0, &work));
  refuse_if(work.damaged, "this is a damaged matrix: its masks do not fit its kept values");
}

template class PackedLinear<false>;
template class PackedLinear<true>;

}  // namespace ecoflap
