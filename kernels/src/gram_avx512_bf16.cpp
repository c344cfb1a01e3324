// vdpbf16ps: sums of products of two pairs of bfloat16, in float32.
#include "gram.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

namespace ecoflap {
namespace {

constexpr int kVectors = kPanel / 16;

inline __m512bh pairs_of(const uint32_t *from) { return (__m512bh)_mm512_loadu_si512(from); }

// Sums of eight rows with a panel's columns over a few pairs of tokens. `rows` and `columns` point at the first pair's.
inline void add_chain(const uint32_t *rows, const uint32_t *columns, int64_t pairs, float (*sums)[kPanel]) {
  __m512 found[kTile][kVectors];
  for (int row = 0; row < kTile; ++row)
    for (int v = 0; v < kVectors; ++v) found[row][v] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < pairs; ++pair, rows += kPanel, columns += kPanel) {
    __m512bh first = pairs_of(columns), second = pairs_of(columns + 16), third = pairs_of(columns + 32);
#pragma GCC unroll 8
    for (int row = 0; row < kTile; ++row) {
      __m512bh own = (__m512bh)_mm512_set1_epi32(int(rows[row]));
      found[row][0] = _mm512_dpbf16_ps(found[row][0], own, first);
      found[row][1] = _mm512_dpbf16_ps(found[row][1], own, second);
      found[row][2] = _mm512_dpbf16_ps(found[row][2], own, third);
    }
  }
  for (int row = 0; row < kTile; ++row)
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(sums[row] + 16 * v, _mm512_add_ps(_mm512_loadu_ps(sums[row] + 16 * v), found[row][v]));
}

}  // namespace

void add_panel_avx512_bf16(const Gram &gram, int64_t panel) {
  const uint32_t *columns = gram.pairs + panel * gram.pair_count * kPanel;
  int64_t first = panel * kPanel, width = gram.features - first < kPanel ? gram.features - first : kPanel;
  for (int64_t row = first; row < gram.features; row += kTile) {
    const uint32_t *rows = gram.pairs + row / kPanel * gram.pair_count * kPanel + row % kPanel;
    float sums[kTile][kPanel] = {};
    for (int64_t pair = 0; pair < gram.pair_count; pair += kInChain) {
      int64_t left = gram.pair_count - pair;
      add_chain(rows + pair * kPanel, columns + pair * kPanel, left < kInChain ? left : kInChain, sums);
    }
    for (int64_t k = 0; k < kTile && row + k < gram.features; ++k)
      for (int64_t column = 0; column < width; ++column)
        gram.sums[(row + k) * gram.features + first + column] += sums[k][column];
  }
}

}  // namespace ecoflap
#endif
