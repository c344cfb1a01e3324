// The C interface: arguments are checked here, and errors become codes with a sentence. ecoflap_kernels.h describes it.
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <new>
#include <vector>

#include "int8.h"
#include "numbers.h"
#include "reorder.h"
#include "tiles.h"

namespace ecoflap {

const Path *const kPaths[] = {&kAmx, &kAvx512Wide, &kAvx512Bf16, &kAvx512, &kAvx2, &kNeon, &kPortable};
const int kPathCount = int(sizeof kPaths / sizeof kPaths[0]);

namespace {

thread_local char message[200] = "";

int refused(int code, const char *text) {
  snprintf(message, sizeof message, "%s", text);
  return code;
}

int refused_null() { return refused(ECOFLAP_BAD_ARGUMENT, "there is nothing at the address that is to be read or written"); }

int bad_matrix(const char *what) {
  snprintf(message, sizeof message, "this is no packed matrix, or a damaged one: %s", what);
  return ECOFLAP_BAD_MATRIX;
}

int state_of(const Path &path) {
  if (!path.cpu_has()) return ECOFLAP_CPU_LACKS_IT;  // first: for another kind of CPU it is never compiled
  return path.product[0] == nullptr ? ECOFLAP_NOT_COMPILED : ECOFLAP_USABLE;
}

const Path *path_at(int number) {
  return number >= 0 && number < kPathCount ? kPaths[number] : nullptr;
}

int unusable(const Path *path) {
  if (path == nullptr) return refused(ECOFLAP_NO_PATH, "there is no path of this number");
  if (state_of(*path) == ECOFLAP_USABLE) return ECOFLAP_OK;
  bool cpu = state_of(*path) == ECOFLAP_CPU_LACKS_IT;
  snprintf(message, sizeof message, "the path %s needs %s, which %s", path->name, path->needs,
           cpu ? "this CPU lacks" : "this library was compiled without");
  return ECOFLAP_NO_PATH;
}

// Opens a matrix for a path, and holds it to what the caller takes it for; `type` is that of x and y, or of what is decoded.
int taken_for(int path, const void *packed, int64_t bytes, int type, int64_t outputs, int64_t inputs, Matrix *m) {
  if (int code = unusable(path_at(path))) return code;
  if (const char *problem = opened(packed, bytes, m)) return bad_matrix(problem);
  if (type != real_type(m->type) || outputs != m->outputs || inputs != m->inputs)
    return refused(ECOFLAP_BAD_ARGUMENT, "the matrix is of another type or of other sizes than it is taken for");
  return ECOFLAP_OK;
}

// Begins a matrix: its header, and zeros where nothing is written otherwise.
int begun(void *out, int64_t bytes, int type, int64_t outputs, int64_t inputs, int64_t kept, Matrix *m) {
  int64_t expected = packed_bytes(type, outputs, inputs, kept);
  if (expected < 0) return refused(ECOFLAP_BAD_ARGUMENT, "no matrix has such a type, such sizes or so many kept weights");
  if (out == nullptr || bytes != expected) return refused(ECOFLAP_BAD_ARGUMENT, "the memory has not the matrix's length");
  if (reinterpret_cast<uintptr_t>(out) % 8 != 0) return refused(ECOFLAP_BAD_ARGUMENT, "the memory is not aligned");
  Header header = {};
  memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.type = uint32_t(type);
  header.outputs = outputs, header.inputs = inputs, header.kept = kept;
  memcpy(out, &header, sizeof header);
  *m = laid_out(out, type, outputs, inputs, kept);
  uint8_t *starts = static_cast<uint8_t *>(out) + sizeof header, *masks = (uint8_t *)m->masks;
  memset(starts, 0, size_t(masks - starts));
  int64_t values = int64_t(m->values - static_cast<uint8_t *>(out)) + kept * size_of(type);
  memset(static_cast<uint8_t *>(out) + values, 0, size_t(bytes - values));
  return ECOFLAP_OK;
}

int written(const char *problem) { return problem == nullptr ? ECOFLAP_OK : refused(ECOFLAP_BAD_ARGUMENT, problem); }

template <class T>
void put_row(int type, const void *row, int64_t inputs, int64_t padded, T *to, int64_t step) {
  for (int64_t k = 0; k < padded; ++k) {
    T value = 0;
    if (k < inputs) value = sizeof(T) == 4 ? T(number_at(type, row, k)) : T(static_cast<const uint16_t *>(row)[k]);
    to[k / 2 * step + k % 2] = value;
  }
}

// x as the path reads it: in its type, filled up with zeros, rows that go together side by side. One row that is so
// already is left where it is.
template <class T>
const void *prepared(const Task &task, int64_t most) {
  const Matrix &w = task.weight;
  int64_t batch = task.batch;
  bool converts = sizeof(T) != size_of(w.type);
  if (batch == 1 && !converts && w.padded == w.inputs) return task.given;
  T *to = static_cast<T *>(memory_for_x(batch * w.padded * int64_t(sizeof(T))));
  int64_t together = 1;
  for (int64_t row = 0, in_group = 0; row < batch; ++row, ++in_group) {
    if (row == 0 || in_group == together) in_group = 0, together = rows_from(row, batch, most);
    const uint8_t *from = static_cast<const uint8_t *>(task.given) + row * task.stride * size_of(w.type);
    put_row(w.type, from, w.inputs, w.padded, to + (row - in_group) * w.padded + 2 * in_group, 2 * together);
  }
  return to;
}

// Blocks are given out several at a time: enough for their memory to be read in long pieces, and as many as go side by side.
struct Shares {
  int64_t blocks, each;
  int64_t count() const { return each == 0 ? 0 : (blocks + each - 1) / each; }
  int64_t first(int64_t share) const { return share * each; }
  int64_t last(int64_t share) const { return first(share) + each < blocks ? first(share) + each : blocks; }
};

Shares shared_out(int64_t blocks, int threads, int64_t side_by_side) {
  int64_t each = blocks / (int64_t(threads) * 8);
  if (threads <= 1) return {blocks, blocks};
  if (each < 1) each = 1;
  return {blocks, blocks < side_by_side * threads ? each : rounded(each, side_by_side)};
}

// Of tokens that are added at once, by what a path makes of them: it may fill up features, to 64 at most, and its bytes can
// be counted.
constexpr int64_t kMostElements = INT64_MAX / 8;
constexpr int64_t kGramRounding = 64;

// What is less than this is done before another thread has woken up.
constexpr int64_t kWorthwhile = 1 << 16;

int worthwhile(int threads, const Matrix &w, int64_t batch) {
  int64_t work = (w.kept * size_of(w.type) + w.blocks * w.padded * 2) * (batch < 1 ? 1 : batch);
  return work / threads < kWorthwhile ? 1 : threads;
}

// So many panels that no thread has one more than another, where there are that many blocks.
Shares shared_out_in_panels(const Matrix &w, int64_t batch, int threads) {
  int64_t most = blocks_of_panel(bands_of(w, batch)), panels = rounded((w.blocks + most - 1) / most, threads);
  return {w.blocks, panels == 0 ? 0 : rounded((w.blocks + panels - 1) / panels, 2)};
}

struct Multiplying {
  const Path &path;
  Task task;
  Shares shares;
  bool all_finite;
  std::atomic<bool> damaged{false};

  static void one(void *context, int64_t share) {
    Multiplying &all = *static_cast<Multiplying *>(context);
    if (!multiplied(all.path, all.task, all.all_finite, all.shares.first(share), all.shares.last(share))) all.damaged = true;
  }
};

struct Unpacking {
  Matrix matrix;
  const Path *path;
  int64_t first, rows;
  uint8_t *out;
  std::atomic<bool> damaged{false};

  static void one(void *context, int64_t block) {
    Unpacking &all = *static_cast<Unpacking *>(context);
    int64_t done = block * kOutputs, left = all.rows - done, row_bytes = all.matrix.inputs * real_size(all.matrix.type);
    int64_t rows = left < kOutputs ? left : kOutputs;
    if (!read_block(all.matrix, *all.path, all.first / kOutputs + block, rows, all.out + done * row_bytes))
      all.damaged = true;
  }
};

int multiply_some(const Path &path, Task task, int threads) {
  const Matrix &w = task.weight;
  int kind = kind_of(w.type);
  bool in_tiles = lies_in_tiles(path, w, task.batch);
  threads = worthwhile(threads, w, task.batch);
  if (is_int8(w.type))
    round_rows(&task, path, memory_for_x(rounded_bytes(path, w, task.batch)), threads);
  else if (in_tiles)
    task.x = put_in_tiles(task, threads);
  else if (w.type == ECOFLAP_BFLOAT16 && path.reads_bfloat16)
    task.x = prepared<uint16_t>(task, path.rows[kind]);
  else
    task.x = prepared<float>(task, path.rows[kind]);
  Shares shares = in_tiles ? shared_out_in_panels(w, task.batch, threads) : shared_out(w.blocks, threads, path.side_by_side);
  Multiplying all{path, task, shares, all_finite(task)};
  in_parallel(threads, all.shares.count(), Multiplying::one, &all);
  return all.damaged ? bad_matrix("its masks do not fit its kept values") : ECOFLAP_OK;
}

int multiply(const Path &path, const Task &all, int threads) {
  int64_t each = rows_at_a_time(path, all.weight, all.batch), size = real_size(all.in_out), first = 0;
  do {
    Task some = all;
    some.batch = all.batch - first < each ? all.batch - first : each;
    some.given = static_cast<const uint8_t *>(all.given) + first * all.stride * size;
    some.y = static_cast<uint8_t *>(all.y) + first * all.weight.outputs * size;
    if (int code = multiply_some(path, some, threads)) return code;
    first += each;
  } while (first < all.batch);
  return ECOFLAP_OK;
}

}  // namespace
}  // namespace ecoflap

using namespace ecoflap;

int ecoflap_abi(void) { return ECOFLAP_ABI; }
const char *ecoflap_message(void) { return message; }
int ecoflap_path_count(void) { return kPathCount; }
const char *ecoflap_path_name(int path) { return path_at(path) ? path_at(path)->name : ""; }
const char *ecoflap_path_needs(int path) { return path_at(path) ? path_at(path)->needs : ""; }
int ecoflap_path_state(int path) { return path_at(path) ? state_of(*path_at(path)) : ECOFLAP_NOT_COMPILED; }
void ecoflap_run_on(void *gomp_parallel) { run_on(gomp_parallel); }

int64_t ecoflap_path_batch(int path, int type) {
  return path_at(path) && type >= 0 && type < ECOFLAP_TYPES ? path_at(path)->batch[kind_of(type)] : 0;
}

int ecoflap_path_adds_grams(int path) {
  return path_at(path) != nullptr && state_of(*path_at(path)) == ECOFLAP_USABLE && path_at(path)->add_gram != nullptr;
}

int64_t ecoflap_packed_bytes(int type, int64_t outputs, int64_t inputs, int64_t kept) {
  return packed_bytes(type, outputs, inputs, kept);
}

int ecoflap_pack_rows(void *out, int64_t bytes, int type, int64_t outputs, int64_t inputs, const uint8_t *mask,
                      const void *values, int64_t kept) try {
  Matrix m;
  if (int code = begun(out, bytes, type, outputs, inputs, kept, &m)) return code;
  if ((mask == nullptr && m.outputs * m.inputs > 0) || (values == nullptr && kept > 0)) return refused_null();
  return written(write_rows(m, mask, values));
} catch (const std::bad_alloc &) {
  return refused(ECOFLAP_BAD_ARGUMENT, "there is not enough memory");
}

int ecoflap_pack_dense(void *out, int64_t bytes, int type, int64_t outputs, int64_t inputs, const void *weight,
                       int64_t kept) try {
  Matrix m;
  if (int code = begun(out, bytes, type, outputs, inputs, kept, &m)) return code;
  if (weight == nullptr && m.outputs * m.inputs > 0) return refused_null();
  return written(write_dense(m, weight));
} catch (const std::bad_alloc &) {
  return refused(ECOFLAP_BAD_ARGUMENT, "there is not enough memory");
}

int ecoflap_check(const void *packed, int64_t bytes) {
  Matrix m;
  if (const char *problem = opened(packed, bytes, &m)) return bad_matrix(problem);
  const char *problem = checked(m);
  return problem == nullptr ? ECOFLAP_OK : bad_matrix(problem);
}

int ecoflap_unpack(int path, const void *packed, int64_t bytes, int type, int64_t outputs, int64_t inputs,
                   int64_t first, int64_t rows, void *out, int threads) {
  Matrix m;
  if (int code = taken_for(path, packed, bytes, type, outputs, inputs, &m)) return code;
  if (first < 0 || first % kOutputs != 0 || rows < 0 || rows > m.outputs - first)
    return refused(ECOFLAP_BAD_ARGUMENT, "the matrix has no such rows, or they do not begin at a multiple of 16");
  if (out == nullptr && rows * m.inputs > 0) return refused_null();
  Unpacking all{m, path_at(path), first, rows, static_cast<uint8_t *>(out)};
  in_parallel(threads < 1 ? 1 : threads, rounded(rows, kOutputs) / kOutputs, Unpacking::one, &all);
  return all.damaged ? bad_matrix("its masks do not fit its kept values") : ECOFLAP_OK;
}

int ecoflap_packed_linear(int path, const void *packed, int64_t bytes, int type, int64_t outputs, int64_t inputs,
                          const void *x, int64_t batch, int64_t x_stride, const void *bias, void *y, int threads) try {
  Task task = {};
  if (int code = taken_for(path, packed, bytes, type, outputs, inputs, &task.weight)) return code;
  if (batch < 0 || (batch > 0 && outputs > 0 && y == nullptr) || (batch > 1 && x_stride < inputs))
    return refused(ECOFLAP_BAD_ARGUMENT, "x has a negative batch or overlapping rows, or there is no place for y");
  if (x == nullptr && batch * inputs > 0) return refused_null();
  task.batch = batch, task.bias = bias, task.y = y, task.in_out = type, task.given = x, task.stride = x_stride;
  return multiply(*path_at(path), task, threads < 1 ? 1 : threads);
} catch (const std::bad_alloc &) {
  return refused(ECOFLAP_BAD_ARGUMENT, "there is not enough memory");
}

int ecoflap_add_gram(int path, const void *x, int64_t tokens, int64_t features, int64_t stride, void *sums,
                     int threads) try {
  if (int code = unusable(path_at(path))) return code;
  if (!ecoflap_path_adds_grams(path)) return refused(ECOFLAP_NO_PATH, "this path leaves Gram matrices to a dense library");
  bool has_sums = features <= 0 || features <= INT64_MAX / int64_t(sizeof(float)) / features;
  if (tokens < 0 || features < 0 || !has_sums ||
      tokens > kMostElements / (features + kGramRounding) || (tokens > 1 && stride < features))
    return refused(ECOFLAP_BAD_ARGUMENT, "there cannot be so many tokens or features, or rows of x overlap");
  if (tokens == 0 || features == 0) return ECOFLAP_OK;
  if (x == nullptr || sums == nullptr) return refused_null();
  path_at(path)->add_gram({static_cast<const uint16_t *>(x), tokens, features, stride}, static_cast<float *>(sums),
                          threads < 1 ? 1 : threads);
  return ECOFLAP_OK;
} catch (const std::bad_alloc &) {
  return refused(ECOFLAP_BAD_ARGUMENT, "there is not enough memory");
}
