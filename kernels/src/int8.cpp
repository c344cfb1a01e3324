// int8 in whole numbers: weights and rows of x are rounded here, once for all paths. int8.h describes it.
#include "int8.h"

#include <math.h>
#include <string.h>

#include "numbers.h"
#include "tiles.h"

namespace ecoflap {
namespace {

constexpr int32_t kInfinity = 0x7f800000;  // a number's bits without its sign are below, where it is finite
constexpr double kMostWeight = 127;

// Compiled for several CPUs, of which a loader takes one: rounding x would take as long as a tenth of a small product. With
// contraction off (build.py) the numbers are the same in each.
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

double most_of(int type) { return rounds_x_to_int8(type) ? 127 : 32767; }

// The nearest whole number, ties to even: beside 1.5 * 2^52 a float64 has no room for a fraction.
inline int32_t nearest(double value) { return int32_t(value + 0x1.8p52 - 0x1.8p52); }

inline int32_t size_bits(float value) { return int32_t(bits_of(value) & 0x7fffffffu); }

FOR_EACH_CPU void to_floats(int type, const void *row, int64_t count, float *out) {
  if (type == ECOFLAP_FLOAT32)
    memcpy(out, row, size_t(count) * sizeof(float));
  else
    for (int64_t k = 0; k < count; ++k) out[k] = number_at(type, row, k);
}

// The bits of the largest absolute value.
FOR_EACH_CPU int32_t most_bits(const float *row, int64_t count) {
  int32_t most = 0;
  for (int64_t k = 0; k < count; ++k) {
    int32_t size = size_bits(row[k]);
    most = size > most ? size : most;
  }
  return most;
}

FOR_EACH_CPU void round_row(const float *row, int64_t count, double scale, int16_t *out) {
  double times = scale > 0 ? 1 / scale : 0;
  if (!(scale > 0)) memset(out, 0, size_t(count) * sizeof(int16_t));
  else
    for (int64_t k = 0; k < count; ++k) out[k] = int16_t(nearest(double(row[k]) * times));
}

// Lays a piece of a row out, `together` of which go side by side.
void put_int16(const int16_t *row, int64_t count, int64_t together, uint8_t *to) {
  for (int64_t k = 0; k < count; k += 4) memcpy(to + 2 * k * together, row + k, 4 * sizeof(int16_t));
}

FOR_EACH_CPU void put_planes(const int16_t *row, int64_t count, int64_t together, bool two, uint8_t *to) {
  for (int64_t k = 0; k < count; k += 4)
    for (int64_t i = 0; i < 4; ++i) {
      uint32_t value = uint32_t(int32_t(row[k + i]) + (two ? 32768 : 128));
      uint8_t *at = to + (two ? 2 : 1) * k * together + i;
      at[0] = uint8_t(two ? value >> 8 : value);
      if (two) at[4] = uint8_t(value);
    }
}

FOR_EACH_CPU void put_bytes(const int16_t *row, int64_t count, int32_t added, int shift, uint8_t *to) {
  for (int64_t k = 0; k < count; ++k) to[k] = uint8_t(uint32_t(int32_t(row[k]) + added) >> shift);
}

constexpr int64_t kPiece = 1024;      // columns that are rounded at a time, on the stack
constexpr int64_t kRowsOfAShare = 32;  // a whole number of bands, and of groups of rows that go side by side

// Rounds rows, some of them by each thread.
struct Rounding {
  const Task &task;
  const Path &path;
  double *scales;
  uint8_t *x;

  static void some(void *context, int64_t share) {
    const Rounding &all = *static_cast<Rounding *>(context);
    int64_t first = share * kRowsOfAShare, last = first + kRowsOfAShare;
    for (int64_t row = first; row < last && row < all.task.batch; ++row) all.round(row);
  }

 private:
  const Matrix &w() const { return task.weight; }

  void round(int64_t row) const {
    int real = real_type(w().type);
    const uint8_t *given = static_cast<const uint8_t *>(task.given) + row * task.stride * real_size(real);
    float floats[kPiece];
    int32_t most = 0;
    for (int64_t k = 0; k < w().inputs; k += kPiece) {
      to_floats(real, given + k * real_size(real), columns_from(k, w().inputs), floats);
      int32_t own = most_bits(floats, columns_from(k, w().inputs));
      most = own > most ? own : most;
    }
    // In float64; NaN where something in the row is not finite.
    scales[row] = most < kInfinity ? double(float_of(uint32_t(most))) / most_of(w().type) : double(NAN);
    for (int64_t k = 0; k < w().padded; k += kPiece) {
      int16_t line[kPiece] = {};
      int64_t count = columns_from(k, w().inputs);
      if (count > 0) {
        to_floats(real, given + k * real_size(real), count, floats);
        round_row(floats, count, scales[row], line);
      }
      put(row, k, line, columns_from(k, w().padded));
    }
  }

  static int64_t columns_from(int64_t first, int64_t columns) {
    return columns - first < kPiece ? columns - first : kPiece;
  }

  void put(int64_t row, int64_t column, const int16_t *line, int64_t count) const {
    int type = w().type;
    if (lies_in_tiles(path, w(), task.batch)) return put_in_tiles(row, column, line, count);
    int64_t most = path.rows[kind_of(type)], group = row / most * most, together = most;
    while ((together = rows_from(group, task.batch, together)) <= row - group) group += together;
    int64_t bytes = path.reads_planes && rounds_x_to_int8(type) ? 1 : 2;
    uint8_t *to = x + (group * w().padded + column * together + 4 * (row - group)) * bytes;
    if (path.reads_planes)
      put_planes(line, count, together, bytes == 2, to);
    else
      put_int16(line, count, together, to);
  }

  void put_in_tiles(int64_t row, int64_t column, const int16_t *line, int64_t count) const {
    uint8_t bytes[kPiece];
    bool two = has_planes(w().type);
    int64_t tiles = rounded(count, kTileLine) / kTileLine, from = column / kTileLine * kTileBytes;
    for (int low = 0; low < (two ? 2 : 1); ++low) {
      put_bytes(line, count, two ? 32768 : 128, two && !low ? 8 : 0, bytes);
      put_line(bytes, count, tiles, place_in_tiles(w(), row, low, x) + from);
    }
  }
};

int64_t scales_bytes(int64_t batch) { return rounded(batch * int64_t(sizeof(double)), kLine); }

bool is_finite(float value) { return size_bits(value) < kInfinity; }

}  // namespace

const char *round_weights(int type, const void *values, int64_t count, float *scale, int8_t *out) {
  int32_t most = 0;
  for (int64_t k = 0; k < count; ++k) {
    int32_t size = size_bits(number_at(type, values, k));
    most = size > most ? size : most;
  }
  if (most >= kInfinity) return "a weight is not finite, and no whole number stands for it";
  *scale = float_of(uint32_t(most)) / float(kMostWeight);
  for (int64_t k = 0; k < count; ++k) {  // of numbers so small that their scale is 0, all are 0
    double whole = *scale > 0 ? double(number_at(type, values, k)) / double(*scale) : 0;
    out[k] = int8_t(nearest(fmin(fmax(whole, -kMostWeight), kMostWeight)));
  }
  return nullptr;
}

void add_up(const Matrix &m, int64_t block, Expand expand, int64_t *sums) {
  const uint8_t *p = m.values_of(block);
  for (int64_t c = 0; c < m.padded; c += kColumns) {
    alignas(kLine) int8_t tile[kColumns / 4][kOutputs][4];
    p = expand(m.type, m.masks_of(block) + c, p, tile);
    for (auto &four : tile)
      for (int64_t i = 0; i < kOutputs; ++i) sums[i] += four[i][0] + four[i][1] + four[i][2] + four[i][3];
  }
}

int64_t rounded_bytes(const Path &path, const Matrix &w, int64_t batch) {
  bool in_tiles = lies_in_tiles(path, w, batch);
  return scales_bytes(batch) + (in_tiles ? bands_of(w, batch) * band_bytes(w) : batch * w.padded * int64_t(sizeof(int16_t)));
}

void round_rows(Task *task, const Path &path, void *memory, int threads) {
  uint8_t *x = static_cast<uint8_t *>(memory) + scales_bytes(task->batch);
  Rounding all{*task, path, static_cast<double *>(memory), x};
  in_parallel(threads, rounded(task->batch, kRowsOfAShare) / kRowsOfAShare, Rounding::some, &all);
  task->x = x;
  task->scales = all.scales;
}

bool all_finite(const Task &task) {
  for (int64_t row = 0; is_int8(task.weight.type) && row < task.batch; ++row)
    if (task.scales[row] != task.scales[row]) return false;
  return true;
}

void put_not_finite(const Task &task, int64_t block) {
  const Matrix &w = task.weight;
  int real = real_type(w.type);
  for (int64_t row = 0; row < task.batch; ++row) {
    if (task.scales[row] == task.scales[row]) continue;
    const uint8_t *x = static_cast<const uint8_t *>(task.given) + row * task.stride * real_size(real);
    const uint16_t *masks = w.masks_of(block);
    const int8_t *p = reinterpret_cast<const int8_t *>(w.values_of(block));
    float sums[kOutputs] = {};
    for (int64_t at = 0; at < kOutputs * w.padded; ++at) {
      int64_t i = at / 4 % kOutputs, k = at / (4 * kOutputs) * 4 + at % 4;
      float weight = masks[at / 16] >> at % 16 & 1 ? float(*p++) * w.scales[block * kOutputs + i] : 0.0f;
      float value = k < w.inputs ? number_at(real, x, k) : 0.0f;
      if (!is_finite(value)) sums[i] += value * weight;
    }
    for (int64_t i = 0; i < kOutputs && block * kOutputs + i < w.outputs; ++i) {
      int64_t output = block * kOutputs + i;
      float bias = task.bias == nullptr ? 0.0f : number_at(real, task.bias, output);
      put_number(real, task.y, row * w.outputs + output, sums[i] + bias);
    }
  }
}

void put_rounded(const Matrix &m, int64_t block, const uint8_t *tile, int64_t columns, int64_t rows, uint8_t *out,
                 int64_t row_bytes) {
  int real = real_type(m.type);
  for (int64_t i = 0; i < rows; ++i) {
    float scale = m.scales[block * kOutputs + i];
    int8_t line[kColumns];
    for (int64_t four = 0; four < kColumns / 4; ++four) memcpy(line + 4 * four, tile + 64 * four + 4 * i, 4);
    for (int64_t c = 0; c < columns; ++c) put_number(real, out + i * row_bytes, c, float(line[c]) * scale);
  }
}

}  // namespace ecoflap
