// The kernel's order: how a packed matrix lies in memory, so that a product reads it once from front to back.
//
// Sixteen outputs are a block. A block holds one 16 bit mask a column, and the kept values column by column, so that a
// vector of 16 sums takes what it needs with one expanding load and no sum across lanes. bfloat16 goes by pairs of
// columns instead (32 bits, output by output, two columns each), which is what vdpbf16ps and AMX tiles want: "VNNI
// order", as oneDNN and SparAMX (Abdelfattah et al., 2025) have it; int8 by fours (64 bits), which is what vpdpbusd wants.
// Columns are filled up to 32 and outputs to 16 with empty masks, which cost nothing else.
//
//   header (64 bytes) · starts (of each block's values, and the end) · masks · of int8: scales (16 float32 a block) and
//   sums (16 int64 a block) · values · 64 bytes to read beyond the end
#pragma once

#include <stdint.h>

#include "../include/ecoflap_kernels.h"

namespace ecoflap {

constexpr int64_t kOutputs = 16;  // of a block
constexpr uint32_t kVersion = 2;  // of the order
constexpr int64_t kMostInt8 = int64_t(1) << 31;  // inputs with int8: float64 holds each sum of int16 times int8
constexpr int64_t kColumns = 32;  // that inputs are filled up to
constexpr int64_t kLine = 64;
constexpr char kMagic[8] = {'e', 'c', 'o', 'f', 'l', 'a', 'p', 'K'};

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t type;
  int64_t outputs, inputs, kept;
  int64_t zeros[3];
};
static_assert(sizeof(Header) == kLine, "a header is a line");

inline int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline bool is_int8(int type) { return type >= ECOFLAP_INT8; }
inline bool rounds_x_to_int8(int type) { return type >= ECOFLAP_INT8A8; }
inline int real_type(int type) { return type % ECOFLAP_INT8; }  // of x, bias and y
inline int64_t real_size(int type) { return real_type(type) == ECOFLAP_FLOAT32 ? 4 : 2; }
inline int64_t size_of(int type) { return is_int8(type) ? 1 : real_size(type); }  // of a value as it is packed

// A matrix where it lies; nothing is owned.
struct Matrix {
  int type;
  int64_t outputs, inputs, kept, padded, blocks;
  const uint64_t *starts;
  const uint16_t *masks;  // of a block: `padded` of them
  const float *scales;    // of int8: 16 a block
  const int64_t *sums;    // of int8: of each output's whole numbers, 16 a block
  const uint8_t *values;

  bool full;              // nothing is pruned and nothing is filled up: masks need not be read

  const uint16_t *masks_of(int64_t block) const { return masks + block * padded; }
  int64_t start_of(int64_t block) const { return full ? block * kOutputs * padded : int64_t(starts[block]); }
  const uint8_t *values_of(int64_t block) const { return values + start_of(block) * size_of(type); }
};

// Bytes in all; negative where the numbers cannot be.
int64_t packed_bytes(int type, int64_t outputs, int64_t inputs, int64_t kept);

// Where the parts of a matrix with these numbers lie, begun at `packed`.
Matrix laid_out(const void *packed, int type, int64_t outputs, int64_t inputs, int64_t kept);

// Null, or what is wrong. Reads what could lead out of the memory: the header, all starts, and the masks of blocks so
// near the end that wrong ones could. A block whose values do not end where the next one's begin shows in the product.
const char *opened(const void *packed, int64_t bytes, Matrix *found);

// Null, or what is wrong: every mask is counted.
const char *checked(const Matrix &matrix);

}  // namespace ecoflap
