// The library under sanitizers, without Python: every path against a sum in double, with memory that ends where the
// matrix ends and begins wherever it may, damaged matrices, and threads. `make test-kernel` compiles it with them and
// runs it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "ecoflap_kernels.h"
#include "numbers.h"

namespace {

using ecoflap::is_int8;
using ecoflap::real_size;
using ecoflap::real_type;
using ecoflap::rounds_x_to_int8;

std::mt19937 random_bits(7);
int failures = 0;

void check(bool is_right, const char *what, int path, int type) {
  if (is_right) return;
  printf("FAILED: %s, path %s, type %d: %s\n", what, ecoflap_path_name(path), type, ecoflap_message());
  ++failures;
}

// Memory of exactly so many bytes, which begins at a line or so many bytes `past` one: a sanitizer sees what is read
// beyond it.
struct Bytes {
  explicit Bytes(int64_t count, int64_t past = 0) : size(count), past(past) {
    if (posix_memalign(&memory, 64, size_t(count + past > 0 ? count + past : 1)) != 0) abort();
  }
  Bytes(const Bytes &) = delete;
  ~Bytes() { free(memory); }
  uint8_t *at() const { return static_cast<uint8_t *>(memory) + past; }
  void *memory = nullptr;
  int64_t size, past;
};

// What a row of weights stands for once it is int8.
void round_row(float *row, int64_t count, int real) {
  float most = 0;
  for (int64_t k = 0; k < count; ++k) most = fmaxf(most, fabsf(row[k]));
  float scale = most / 127;
  for (int64_t k = 0; k < count && scale > 0; ++k) {
    uint32_t bits;
    put_number(real, &bits, 0, float(rint(double(row[k]) / double(scale))) * scale);
    row[k] = number_at(real, &bits, 0);
  }
}

struct Matrix {
  int type, real;
  int64_t outputs, inputs, kept = 0;
  std::vector<float> dense;
  std::vector<uint8_t> raw;
  std::unique_ptr<Bytes> packed;

  Matrix(int type, int64_t outputs, int64_t inputs, double sparsity, int64_t past = 0)
      : type(type), real(real_type(type)), outputs(outputs), inputs(inputs), dense(size_t(outputs * inputs)),
        raw(size_t(outputs * inputs * real_size(type) + 1)) {
    std::uniform_real_distribution<float> value(-1, 1), share(0, 1);
    for (size_t i = 0; i < dense.size(); ++i) {
      put_number(real, raw.data(), int64_t(i), share(random_bits) < sparsity ? 0.0f : value(random_bits));
      dense[i] = number_at(real, raw.data(), int64_t(i));
      kept += dense[i] != 0;
    }
    packed = std::make_unique<Bytes>(ecoflap_packed_bytes(type, outputs, inputs, kept), past);
    int code = ecoflap_pack_dense(packed->at(), packed->size, type, outputs, inputs, raw.data(), kept);
    check(code == ECOFLAP_OK, "pack_dense", 0, type);
    for (int64_t i = 0; is_int8(type) && i < outputs; ++i) round_row(dense.data() + i * inputs, inputs, real);
  }
};

int multiply(int path, const Matrix &w, const Bytes &x, int64_t batch, const Bytes &y, int threads, int64_t gap = 0,
             const void *bias = nullptr) {
  return ecoflap_packed_linear(path, w.packed->at(), w.packed->size, w.real, w.outputs, w.inputs, x.at(), batch,
                               w.inputs + gap, bias, y.at(), threads);
}

int decode(int path, const Matrix &w, const Bytes &out) {
  return ecoflap_unpack(path, w.packed->at(), w.packed->size, w.real, w.outputs, w.inputs, 0, w.outputs, out.at(), 2);
}

// With a `gap` between rows, which holds no numbers, there is a bias too, and all begins as far from a line as it may.
void test_product(int path, const Matrix &w, int64_t batch, int threads, int64_t gap) {
  int64_t size = real_size(w.type), past = gap > 0 ? size : 0, stride = w.inputs + gap, count = batch * stride - gap;
  Bytes x(count * size, past), y(batch * w.outputs * size, past), bias(w.outputs * size, past);
  std::uniform_real_distribution<float> value(-1, 1);
  for (int64_t i = 0; i < count; ++i) put_number(w.real, x.at(), i, i % stride < w.inputs ? value(random_bits) : NAN);
  for (int64_t i = 0; i < w.outputs; ++i) put_number(w.real, bias.at(), i, gap > 0 ? value(random_bits) : 0);
  int code = multiply(path, w, x, batch, y, threads, gap, gap > 0 ? bias.at() : nullptr);
  check(code == ECOFLAP_OK, "packed_linear", path, w.type);
  double most = w.real == ECOFLAP_FLOAT32 ? 1e-5 : w.real == ECOFLAP_FLOAT16 ? 2e-3 : 1.6e-2;
  double half_scale = !is_int8(w.type) ? 0 : 0.5 / (rounds_x_to_int8(w.type) ? 127 : 32767);  // x is below 1
  for (int64_t row = 0; row < batch; ++row)
    for (int64_t i = 0; i < w.outputs; ++i) {
      double sum = number_at(w.real, bias.at(), i), sizes = 1 + fabs(sum), rounding = 0;
      for (int64_t k = 0; k < w.inputs; ++k) {
        double weight = double(w.dense[size_t(i * w.inputs + k)]);
        double product = weight * number_at(w.real, x.at(), row * stride + k);
        sum += product, sizes += fabs(product), rounding += half_scale * fabs(weight);
      }
      double error = fabs(number_at(w.real, y.at(), row * w.outputs + i) - sum);
      check(error <= most * sizes + rounding, "product", path, w.type);
    }
}

void test_decoding(int path, const Matrix &w, int64_t past) {
  Bytes out(w.outputs * w.inputs * real_size(w.type), past);
  int code = decode(path, w, out);
  check(code == ECOFLAP_OK, "unpack", path, w.type);
  bool is_same = true;
  for (size_t i = 0; i < w.dense.size(); ++i) is_same &= number_at(w.real, out.at(), int64_t(i)) == w.dense[i];
  check(is_same, "decoded weights", path, w.type);
}

// An infinity or a NaN in x: each output is one, and other rows are as they would be without it.
void test_not_finite(int path, const Matrix &w) {
  int64_t size = real_size(w.type);
  Bytes x(3 * w.inputs * size), y(3 * w.outputs * size), alone(w.outputs * size);
  for (int64_t i = 0; i < 3 * w.inputs; ++i) put_number(w.real, x.at(), i, float(i % 7));
  check(multiply(path, w, x, 1, alone, 1) == ECOFLAP_OK, "packed_linear", path, w.type);
  put_number(w.real, x.at(), 2 * w.inputs - 1, INFINITY);
  put_number(w.real, x.at(), 3 * w.inputs - 1, NAN);
  check(multiply(path, w, x, 3, y, 1) == ECOFLAP_OK, "packed_linear", path, w.type);
  check(memcmp(y.at(), alone.at(), size_t(alone.size)) == 0, "a row beside others", path, w.type);
  for (int64_t i = w.outputs; i < 3 * w.outputs; ++i) {
    float found = number_at(w.real, y.at(), i);
    check(i < 2 * w.outputs ? !isfinite(found) : found != found, "not finite", path, w.type);
  }
}

// The packed file's order: bits and values in memory that ends with them, and begins at no even address and at no line.
void test_rows(const Matrix &w) {
  int64_t count = w.outputs * w.inputs, size = real_size(w.type);
  Bytes bits((count + 7) / 8, 1), values(w.kept * size, size), again(w.packed->size);
  memset(bits.at(), 0, size_t(bits.size));
  for (int64_t i = 0, next = 0; i < count; ++i) {
    if (number_at(w.real, w.raw.data(), i) == 0) continue;
    bits.at()[i / 8] |= uint8_t(1 << i % 8);
    memcpy(values.at() + size * next++, w.raw.data() + size * i, size_t(size));
  }
  int code = ecoflap_pack_rows(again.at(), again.size, w.type, w.outputs, w.inputs, bits.at(), values.at(), w.kept);
  check(code == ECOFLAP_OK, "pack_rows", 0, w.type);
  check(memcmp(again.at(), w.packed->at(), size_t(again.size)) == 0, "order of rows", 0, w.type);
}

// A whole matrix that begins at another address than a multiple of 8 is neither read nor written.
void test_refused(int path, Matrix &w) {
  int64_t size = real_size(w.type);
  Bytes x(w.inputs * size), y(w.outputs * size), out(w.outputs * w.inputs * size);
  memset(x.at(), 0, size_t(x.size));
  auto moved = std::make_unique<Bytes>(w.packed->size, 1);
  memcpy(moved->at(), w.packed->at(), size_t(moved->size));
  std::swap(w.packed, moved);
  check(ecoflap_check(w.packed->at(), w.packed->size) == ECOFLAP_BAD_MATRIX, "check of an odd address", path, w.type);
  check(multiply(path, w, x, 1, y, 1) == ECOFLAP_BAD_MATRIX, "product from an odd address", path, w.type);
  check(decode(path, w, out) == ECOFLAP_BAD_MATRIX, "decoding from an odd address", path, w.type);
  int code = ecoflap_pack_dense(w.packed->at(), w.packed->size, w.type, w.outputs, w.inputs, w.raw.data(), w.kept);
  check(code == ECOFLAP_BAD_ARGUMENT, "packing to an odd address", path, w.type);
  std::swap(w.packed, moved);
}

// Whatever bytes are changed, no path may read or write beyond the memory.
void test_damage(int path, const Matrix &w, int64_t batch = 3, int rounds = 60) {
  int64_t size = real_size(w.type);
  Bytes x(batch * w.inputs * size), y(batch * w.outputs * size), out(w.outputs * w.inputs * size);
  memset(x.at(), 0, size_t(x.size));
  put_number(w.real, x.at(), 0, INFINITY);
  for (int times = 0; times < rounds; ++times) {
    Bytes before(w.packed->size);
    memcpy(before.at(), w.packed->at(), size_t(before.size));
    int64_t head = times % 2 == 0 ? before.size : 64 + 8 * (w.outputs / 16 + 2);
    for (int i = 0; i < 1 + times % 4; ++i) w.packed->at()[random_bits() % size_t(head)] = uint8_t(random_bits());
    multiply(path, w, x, batch, y, 1);
    decode(path, w, out);
    ecoflap_check(w.packed->at(), w.packed->size);
    memcpy(w.packed->at(), before.at(), size_t(before.size));
  }
  check(ecoflap_check(w.packed->at(), w.packed->size) == ECOFLAP_OK, "what was mended", path, w.type);
}

void test_path(int path) {
  const int64_t sizes[][2] = {{1, 1}, {16, 32}, {17, 33}, {48, 64}, {70, 129}};
  const double sparsities[] = {0.0, 0.5, 0.9, 1.0};
  for (int type = 0; type < ECOFLAP_TYPES; ++type)
    for (const auto &size : sizes)
      for (double sparsity : sparsities) {
        Matrix w(type, size[0], size[1], sparsity, size[0] % 2 * 8);
        for (int64_t batch : {1, 2, 7, 33})
          for (int64_t gap : {0, 3}) test_product(path, w, batch, 1, gap);
        if (is_int8(type)) test_not_finite(path, w);
        for (int64_t past : {int64_t(0), real_size(type)}) test_decoding(path, w, past);
        test_rows(w);
        test_refused(path, w);
        test_damage(path, w);
      }
  for (int type : {ECOFLAP_BFLOAT16 + 0, ECOFLAP_INT8 + ECOFLAP_BFLOAT16, ECOFLAP_INT8A8 + ECOFLAP_FLOAT16}) {
    Matrix large(type, 1500, 300, 0.5);
    for (int threads : {1, 2, 4}) test_product(path, large, 9, threads, 0);
    for (double sparsity : {0.0, 0.5}) {  // several bands of x, and rows so long that they are put in place in slices
      Matrix wide(type, 40, 5000, sparsity);
      for (int threads : {1, 2}) test_product(path, wide, threads == 1 ? 35 : 115, threads, 3);
      test_damage(path, wide, 35, 8);
    }
  }
}

// Bytes are counted here: X, and the sums, end where their memory does.
void test_gram(int path) {
  for (int64_t tokens : {0, 1, 2, 33, 300, 530})
    for (int64_t features : {1, 7, 48, 49, 100, 270})
      for (int64_t gap : {0, 3})
        for (int threads : {1, 3}) {
          std::vector<uint16_t> x(size_t(tokens == 0 ? 0 : (tokens - 1) * (features + gap) + features), 0x3f80);  // ones
          std::vector<float> sums(size_t(features * features), 0.0f);
          int code = ecoflap_add_gram(path, x.data(), tokens, features, features + gap, sums.data(), threads);
          bool adds = ecoflap_path_adds_grams(path) != 0, right = code == (adds ? ECOFLAP_OK : ECOFLAP_NO_PATH);
          for (int64_t row = 0; row < features; ++row)
            for (int64_t column = 0; column <= row; ++column)
              right = right && sums[size_t(row * features + column)] == (adds ? float(tokens) : 0.0f);
          check(right, "a Gram matrix", path, ECOFLAP_BFLOAT16);
        }
}

}  // namespace

int main() {
  for (int path = 0; path < ecoflap_path_count(); ++path) {
    bool usable = ecoflap_path_state(path) == ECOFLAP_USABLE;
    printf("%s: %s\n", ecoflap_path_name(path), usable ? "tested" : "skipped, this CPU or this library lacks it");
    if (!usable) continue;
    test_path(path);
    test_gram(path);
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
