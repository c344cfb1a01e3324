// The library under sanitizers, without Python: every path against a sum in double, with memory that ends where the
// matrix ends, damaged matrices, and threads. `make test-kernel` compiles it with them and runs it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <random>
#include <vector>

#include "ecoflap_kernels.h"
#include "numbers.h"

namespace {

using ecoflap::size_of;

std::mt19937 random_bits(7);
int failures = 0;

void check(bool is_right, const char *what, int path, int type) {
  if (is_right) return;
  printf("FAILED: %s, path %s, type %d: %s\n", what, ecoflap_path_name(path), type, ecoflap_message());
  ++failures;
}

// Memory of exactly so many bytes, aligned to lines: a sanitizer sees what is read beyond it.
struct Bytes {
  explicit Bytes(int64_t count) : size(count) {
    if (posix_memalign(&memory, 64, size_t(count > 0 ? count : 1)) != 0) abort();
  }
  Bytes(const Bytes &) = delete;
  ~Bytes() { free(memory); }
  uint8_t *at() const { return static_cast<uint8_t *>(memory); }
  void *memory = nullptr;
  int64_t size;
};

struct Matrix {
  int type;
  int64_t outputs, inputs, kept = 0;
  std::vector<float> dense;
  std::vector<uint8_t> raw;
  std::unique_ptr<Bytes> packed;

  Matrix(int type, int64_t outputs, int64_t inputs, double sparsity)
      : type(type), outputs(outputs), inputs(inputs), dense(size_t(outputs * inputs)),
        raw(size_t(outputs * inputs * size_of(type) + 1)) {
    std::uniform_real_distribution<float> value(-1, 1), share(0, 1);
    for (size_t i = 0; i < dense.size(); ++i) {
      put_number(type, raw.data(), int64_t(i), share(random_bits) < sparsity ? 0.0f : value(random_bits));
      dense[i] = number_at(type, raw.data(), int64_t(i));
      kept += dense[i] != 0;
    }
    packed = std::make_unique<Bytes>(ecoflap_packed_bytes(type, outputs, inputs, kept));
    int code = ecoflap_pack_dense(packed->at(), packed->size, type, outputs, inputs, raw.data(), kept);
    check(code == ECOFLAP_OK, "pack_dense", 0, type);
  }
};

int multiply(int path, const Matrix &w, const Bytes &x, int64_t batch, const Bytes &y, int threads) {
  return ecoflap_packed_linear(path, w.packed->at(), w.packed->size, w.type, w.outputs, w.inputs, x.at(), batch, w.inputs,
                               nullptr, y.at(), threads);
}

int decode(int path, const Matrix &w, const Bytes &out) {
  return ecoflap_unpack(path, w.packed->at(), w.packed->size, w.type, w.outputs, w.inputs, 0, w.outputs, out.at(), 2);
}

void test_product(int path, const Matrix &w, int64_t batch, int threads) {
  int64_t size = size_of(w.type);
  Bytes x(batch * w.inputs * size), y(batch * w.outputs * size);
  std::uniform_real_distribution<float> value(-1, 1);
  for (int64_t i = 0; i < batch * w.inputs; ++i) put_number(w.type, x.at(), i, value(random_bits));
  check(multiply(path, w, x, batch, y, threads) == ECOFLAP_OK, "packed_linear", path, w.type);
  double most = w.type == ECOFLAP_FLOAT32 ? 1e-5 : w.type == ECOFLAP_FLOAT16 ? 2e-3 : 1.6e-2;
  for (int64_t row = 0; row < batch; ++row)
    for (int64_t i = 0; i < w.outputs; ++i) {
      double sum = 0, sizes = 1;
      for (int64_t k = 0; k < w.inputs; ++k) {
        double product = double(w.dense[size_t(i * w.inputs + k)]) * number_at(w.type, x.at(), row * w.inputs + k);
        sum += product, sizes += fabs(product);
      }
      check(fabs(number_at(w.type, y.at(), row * w.outputs + i) - sum) <= most * sizes, "product", path, w.type);
    }
}

void test_decoding(int path, const Matrix &w) {
  Bytes out(w.outputs * w.inputs * size_of(w.type));
  int code = decode(path, w, out);
  check(code == ECOFLAP_OK, "unpack", path, w.type);
  bool is_same = true;
  for (size_t i = 0; i < w.dense.size(); ++i) is_same &= number_at(w.type, out.at(), int64_t(i)) == w.dense[i];
  check(is_same, "decoded weights", path, w.type);
}

// The packed file's order: bits and values in memory that ends with them.
void test_rows(const Matrix &w) {
  int64_t count = w.outputs * w.inputs, size = size_of(w.type);
  Bytes bits((count + 7) / 8), values(w.kept * size), again(w.packed->size);
  memset(bits.at(), 0, size_t(bits.size));
  for (int64_t i = 0, next = 0; i < count; ++i) {
    if (w.dense[size_t(i)] == 0) continue;
    bits.at()[i / 8] |= uint8_t(1 << i % 8);
    memcpy(values.at() + size * next++, w.raw.data() + size * i, size_t(size));
  }
  int code = ecoflap_pack_rows(again.at(), again.size, w.type, w.outputs, w.inputs, bits.at(), values.at(), w.kept);
  check(code == ECOFLAP_OK, "pack_rows", 0, w.type);
  check(memcmp(again.at(), w.packed->at(), size_t(again.size)) == 0, "order of rows", 0, w.type);
}

// Whatever bytes are changed, no path may read or write beyond the memory.
void test_damage(int path, const Matrix &w) {
  Bytes x(3 * w.inputs * size_of(w.type)), y(3 * w.outputs * size_of(w.type)), out(w.outputs * w.inputs * size_of(w.type));
  memset(x.at(), 0, size_t(x.size));
  for (int times = 0; times < 60; ++times) {
    Bytes before(w.packed->size);
    memcpy(before.at(), w.packed->at(), size_t(before.size));
    int64_t head = times % 2 == 0 ? before.size : 64 + 8 * (w.outputs / 16 + 2);
    for (int i = 0; i < 1 + times % 4; ++i) w.packed->at()[random_bits() % size_t(head)] = uint8_t(random_bits());
    multiply(path, w, x, 3, y, 1);
    decode(path, w, out);
    ecoflap_check(w.packed->at(), w.packed->size);
    memcpy(w.packed->at(), before.at(), size_t(before.size));
  }
  check(ecoflap_check(w.packed->at(), w.packed->size) == ECOFLAP_OK, "what was mended", path, w.type);
}

void test_path(int path) {
  const int64_t sizes[][2] = {{1, 1}, {16, 32}, {17, 33}, {48, 64}, {70, 129}};
  const double sparsities[] = {0.0, 0.5, 0.9, 1.0};
  for (int type = 0; type < 3; ++type)
    for (const auto &size : sizes)
      for (double sparsity : sparsities) {
        Matrix w(type, size[0], size[1], sparsity);
        for (int64_t batch : {1, 2, 7, 33}) test_product(path, w, batch, 1);
        test_decoding(path, w);
        test_rows(w);
        test_damage(path, w);
      }
  Matrix large(ECOFLAP_BFLOAT16, 1500, 300, 0.5);
  for (int threads : {1, 2, 4}) test_product(path, large, 9, threads);
}

}  // namespace

int main() {
  for (int path = 0; path < ecoflap_path_count(); ++path) {
    bool usable = ecoflap_path_state(path) == ECOFLAP_USABLE;
    printf("%s: %s\n", ecoflap_path_name(path), usable ? "tested" : "skipped, this CPU or this library lacks it");
    if (usable) test_path(path);
  }
  printf("%d failures\n", failures);
  return failures != 0;
}
