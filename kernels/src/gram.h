// Sums of products of tokens: X' X, the Gram matrix of a layer's inputs, for rows X of bfloat16.
//
// Products of two bfloat16 are exact in float32 (vdpbf16ps takes what is below 2^-126 for zero), so that a CPU that
// multiplies them in pairs sums what it would sum in float32, at twice the speed. Two tokens lie side by side, feature by feature, which is what vdpbf16ps wants of both
// factors; features are divided into panels of 48. The matrix is symmetric: panels above the diagonal are left out.
#pragma once

#include <stdint.h>

namespace ecoflap {

constexpr int64_t kPanel = 48;    // features: three vectors of 16 sums
constexpr int64_t kTile = 8;      // rows of sums at a time; with the panel's three vectors they take 24 registers of 32
constexpr int64_t kInChain = 64;  // pairs that are added up one behind the other: the fewer, the less is rounded away

struct Gram {
  const uint32_t *pairs;  // panel by panel, of each pair of tokens the panel's features
  int64_t pair_count, features;
  float *sums;  // `features` rows and columns
};

// Adds the sums of one panel's columns, from the panel's own rows down.
using AddPanel = void (*)(const Gram &gram, int64_t panel);

// For CPUs with vdpbf16ps; there where the path that takes it is compiled.
void add_panel_avx512_bf16(const Gram &gram, int64_t panel);

// Adds all panels, by up to `threads` threads. Throws std::bad_alloc.
void add_gram(AddPanel add, const uint16_t *x, int64_t tokens, int64_t features, int64_t stride, float *sums, int threads);

}  // namespace ecoflap
