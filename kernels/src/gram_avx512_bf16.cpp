// vdpbf16ps: sums of products of two pairs of bfloat16, in float32. Two tokens lie side by side, feature by feature, which
// is what it wants of both factors; features are divided into panels of 48.
#include "gram.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#include "path.h"

namespace ecoflap {
namespace {

constexpr int64_t kPanel = 48;    // features: three vectors of 16 sums
constexpr int64_t kRows = 8;      // of sums at a time; with the panel's three vectors they take 24 registers of 32
constexpr int64_t kInChain = 64;  // pairs that are added up one behind the other: the fewer, the less is rounded away
constexpr int kVectors = kPanel / 16;

struct Adding {
  const uint32_t *pairs;  // panel by panel, of each pair of tokens the panel's features
  int64_t pair_count, features;
  float *sums;

  const uint32_t *panel(int64_t number) const { return pairs + number * pair_count * kPanel; }
};

// Of the last pair the second token may be none, and of the last panel features: they are zeros.
void put_panel(const uint16_t *x, int64_t tokens, int64_t width, int64_t stride, uint32_t *to) {
  for (int64_t token = 0; token < tokens; token += 2, to += kPanel) {
    const uint16_t *first = x + token * stride, *second = token + 1 < tokens ? first + stride : nullptr;
    for (int64_t k = 0; k < kPanel; ++k)
      to[k] = k >= width ? 0 : second == nullptr ? first[k] : first[k] | uint32_t(second[k]) << 16;
  }
}

inline __m512bh pairs_of(const uint32_t *from) { return (__m512bh)_mm512_loadu_si512(from); }

// Sums of eight rows with a panel's columns over a few pairs of tokens. `rows` and `columns` point at the first pair's.
inline void add_chain(const uint32_t *rows, const uint32_t *columns, int64_t pairs, float (*sums)[kPanel]) {
  __m512 found[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) found[row][v] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < pairs; ++pair, rows += kPanel, columns += kPanel) {
    __m512bh first = pairs_of(columns), second = pairs_of(columns + 16), third = pairs_of(columns + 32);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      __m512bh own = (__m512bh)_mm512_set1_epi32(int(rows[row]));
      found[row][0] = _mm512_dpbf16_ps(found[row][0], own, first);
      found[row][1] = _mm512_dpbf16_ps(found[row][1], own, second);
      found[row][2] = _mm512_dpbf16_ps(found[row][2], own, third);
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(sums[row] + 16 * v, _mm512_add_ps(_mm512_loadu_ps(sums[row] + 16 * v), found[row][v]));
}

// Adds the sums of one panel's columns, from the panel's own rows down.
void add_panel(void *context, int64_t panel) {
  const Adding &all = *static_cast<const Adding *>(context);
  const uint32_t *columns = all.panel(panel);
  int64_t first = panel * kPanel, width = all.features - first < kPanel ? all.features - first : kPanel;
  for (int64_t row = first; row < all.features; row += kRows) {
    const uint32_t *rows = all.panel(row / kPanel) + row % kPanel;
    float sums[kRows][kPanel] = {};
    for (int64_t pair = 0; pair < all.pair_count; pair += kInChain) {
      int64_t left = all.pair_count - pair;
      add_chain(rows + pair * kPanel, columns + pair * kPanel, left < kInChain ? left : kInChain, sums);
    }
    for (int64_t k = 0; k < kRows && row + k < all.features; ++k)
      for (int64_t column = 0; column < width; ++column)
        all.sums[(row + k) * all.features + first + column] += sums[k][column];
  }
}

}  // namespace

void add_gram_avx512_bf16(const Tokens &tokens, float *sums, int threads) {
  int64_t panels = rounded(tokens.features, kPanel) / kPanel, pairs = rounded(tokens.count, 2) / 2;
  uint32_t *to = static_cast<uint32_t *>(memory_for_x(panels * pairs * kPanel * int64_t(sizeof(uint32_t))));
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t first = panel * kPanel, width = tokens.features - first < kPanel ? tokens.features - first : kPanel;
    put_panel(tokens.x + first, tokens.count, width, tokens.stride, to + panel * pairs * kPanel);
  }
  Adding all{to, pairs, tokens.features, sums};
  in_parallel(threads, panels, add_panel, &all);  // the first is the longest
}

}  // namespace ecoflap
#endif
