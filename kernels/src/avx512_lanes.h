// AVX-512 VBMI2: vpexpandb, vpexpandw and vpexpandd put packed values in place, 64 bytes at a time.
#pragma once

#include <immintrin.h>

#include "int8_blocks.h"

namespace {

struct Columns {
  __m512 first, second;
};

// 64 bytes are loaded whatever the mask says, and expanded in a register: an expanding load of its own is slow on some
// CPUs. Zen 4 makes an expansion wait for what its target held before, though nothing of that is left: measured, one
// every 5 cycles, and one every 1.3 where the target is cleared first. A compiler takes the clearing for needless.
inline __m512i words(uint32_t mask, const uint8_t *&p) {
  __m512i found;
  __asm__("vpxord %0, %0, %0\n\tvpexpandw %1, %0%{%2%}%{z%}"
          : "=&v"(found)
          : "v"(_mm512_loadu_si512(p)), "Yk"(__mmask32(mask)));
  p += 2 * count(mask);
  return found;
}

inline __m512i bytes(uint64_t mask, const uint8_t *&p) {
  __m512i found;
  __asm__("vpxord %0, %0, %0\n\tvpexpandb %1, %0%{%2%}%{z%}"
          : "=&v"(found)
          : "v"(_mm512_loadu_si512(p)), "Yk"(__mmask64(mask)));
  p += __builtin_popcountll(mask);
  return found;
}

inline __m512 floats(uint16_t mask, const uint8_t *&p) {
  __m512 found;
  __asm__("vpxord %0, %0, %0\n\tvexpandps %1, %0%{%2%}%{z%}"
          : "=&v"(found)
          : "v"(_mm512_loadu_ps(p)), "Yk"(__mmask16(mask)));
  p += 4 * count(mask);
  return found;
}

inline __m512i next_line(const uint8_t *&p) {
  p += 64;
  return _mm512_loadu_si512(p - 64);
}

struct Sums512 {
  static constexpr int kRows = 16, kRowsInChains = 4;
  using Sums = __m512;
  static Sums none() { return _mm512_setzero_ps(); }
  static Sums plus(Sums a, Sums b) { return _mm512_add_ps(a, b); }
  static void store(Sums sums, float *out) { _mm512_storeu_ps(out, sums); }
};

// Multiplies in float32, with x in float32.
struct InFloat : Sums512 {
  using Input = float;
  using Taken = Columns;
  static Sums add(Sums sums, const Taken &taken, const float *x) {
    sums = _mm512_fmadd_ps(taken.first, _mm512_set1_ps(x[0]), sums);
    return _mm512_fmadd_ps(taken.second, _mm512_set1_ps(x[1]), sums);
  }
};

struct Float32 : InFloat {
  static Taken take(uint32_t mask, const uint8_t *&p) {
    __m512 first = floats(uint16_t(mask), p);
    return {first, floats(uint16_t(mask >> 16), p)};
  }
  static Taken whole(const uint8_t *&p) {
    __builtin_prefetch(p + kAhead + 64);
    __m512 first = _mm512_castsi512_ps(next_line(p));
    return {first, _mm512_castsi512_ps(next_line(p))};
  }
};

struct Half : InFloat {
  static Taken take(uint32_t mask, const uint8_t *&p) { return split(words(mask, p)); }
  static Taken whole(const uint8_t *&p) { return split(next_line(p)); }
  static Taken split(__m512i halves) {
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))};
  }
};

struct Bfloat16InFloat : InFloat {
  static Taken take(uint32_t mask, const uint8_t *&p) { return split(words(mask, p)); }
  static Taken whole(const uint8_t *&p) { return split(next_line(p)); }
  static Taken split(__m512i pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u))))};
  }
};

// Multiplies bytes by vpdpbusd, four columns of 16 outputs at a time: x in one plane or in two. A lane adds four products of
// a byte with one below 128: 16384 times they stay below 2^31.
template <int Planes>
struct Int8 {
  static constexpr int kRows = 8, kChains = 4;
  static constexpr int64_t kFourBytes = 4 * Planes, kFours = 16384, kAdded = Planes == 2 ? 32768 : 128;
  using Taken = __m512i;
  struct Sums {
    __m512i at[Planes];
  };

  static Sums none() {
    Sums sums;
    for (int plane = 0; plane < Planes; ++plane) sums.at[plane] = _mm512_setzero_si512();
    return sums;
  }
  static Sums plus(Sums a, const Sums &b) {
    for (int plane = 0; plane < Planes; ++plane) a.at[plane] = _mm512_add_epi32(a.at[plane], b.at[plane]);
    return a;
  }
  static Taken take(uint64_t mask, const uint8_t *&p) { return bytes(mask, p); }
  static Taken whole(const uint8_t *&p) { return next_line(p); }
  static void add(Sums &sums, Taken taken, const uint8_t *x) {
    for (int plane = 0; plane < Planes; ++plane) {
      int four;
      memcpy(&four, x + 4 * plane, sizeof four);
      sums.at[plane] = _mm512_dpbusd_epi32(sums.at[plane], _mm512_set1_epi32(four), taken);
    }
  }
  static void add_to(int64_t (&totals)[kOutputs], const Sums &sums) {
    alignas(64) int32_t high[kOutputs], low[kOutputs];
    _mm512_store_si512(high, sums.at[0]);
    _mm512_store_si512(low, sums.at[Planes - 1]);
    for (int i = 0; i < kOutputs; ++i) totals[i] += Planes == 2 ? 256 * int64_t(high[i]) + low[i] : int64_t(high[i]);
  }
};

#if defined(__AVX512BF16__)
// Multiplies pairs of bfloat16 by vdpbf16ps, with x in bfloat16.
struct Bfloat16 : Sums512 {
  using Input = uint16_t;
  using Taken = __m512i;
  static Taken take(uint32_t mask, const uint8_t *&p) { return words(mask, p); }
  static Taken whole(const uint8_t *&p) { return next_line(p); }
  static Sums add(Sums sums, Taken taken, const uint16_t *x) {
    int pair;
    memcpy(&pair, x, sizeof pair);
    return _mm512_dpbf16_ps(sums, (__m512bh)taken, (__m512bh)_mm512_set1_epi32(pair));
  }
};
#endif

inline const uint8_t *expand_512(int type, const uint16_t *masks, const uint8_t *values, void *tile) {
  uint8_t *out = static_cast<uint8_t *>(tile);
  for (int64_t four = 0; size_of(type) == 1 && four < kColumns / 4; ++four)
    _mm512_storeu_si512(out + 64 * four, bytes(mask_of_four(masks, four), values));
  for (int64_t pair = 0; size_of(type) != 1 && pair < kColumns / 2; ++pair) {
    uint32_t mask = mask_of(masks, pair);
    if (size_of(type) == 2) {
      _mm512_storeu_si512(out + 64 * pair, words(mask, values));
    } else {
      _mm512_storeu_ps(out + 128 * pair, floats(uint16_t(mask), values));
      _mm512_storeu_ps(out + 128 * pair + 64, floats(uint16_t(mask >> 16), values));
    }
  }
  return values;
}

// Two vectors from two others: a stage of four, which turn 16 rows of 16 into 16 columns.
template <int Stage>
inline void exchange(__m512i &a, __m512i &b) {
  __m512i before = a;
  if constexpr (Stage == 0) a = _mm512_unpacklo_epi32(before, b), b = _mm512_unpackhi_epi32(before, b);
  if constexpr (Stage == 1) a = _mm512_unpacklo_epi64(before, b), b = _mm512_unpackhi_epi64(before, b);
  if constexpr (Stage == 2) a = _mm512_shuffle_i32x4(before, b, 0x88), b = _mm512_shuffle_i32x4(before, b, 0xdd);
}

inline void transpose(__m512i (&v)[16]) {
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) exchange<0>(v[i], v[i + 1]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<1>(v[i / 2 * 4 + i % 2], v[i / 2 * 4 + i % 2 + 2]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<2>(v[i / 4 * 8 + i % 4], v[i / 4 * 8 + i % 4 + 4]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<2>(v[i], v[i + 8]);
}

// Which vector has which column then: the two lowest bits of its number have changed places.
inline int vector_of(int column) { return (column & 12) | (column & 1) << 1 | (column >> 1 & 1); }

inline void put_rows(__m512i (&v)[16], uint8_t *out, int64_t row_bytes) {
  transpose(v);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * row_bytes, v[vector_of(i)]);
}

// Output by output where a line has one column after the other.
inline __m512i as_pairs(__m512i columns) {
  __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(columns));
  __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(columns, 1));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

inline const uint8_t *to_rows_512(int type, const uint16_t *masks, const uint8_t *p, uint8_t *out, int64_t row_bytes) {
  __m512i v[16];
  if (type != ECOFLAP_FLOAT32) {
    for (int i = 0; i < 16; ++i) v[i] = words(mask_of(masks, i), p);
    for (int i = 0; i < 16 && type == ECOFLAP_FLOAT16; ++i) v[i] = as_pairs(v[i]);
    put_rows(v, out, row_bytes);
    return p;
  }
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 16; ++i) v[i] = _mm512_castps_si512(floats(masks[16 * half + i], p));
    put_rows(v, out + 64 * half, row_bytes);
  }
  return p;
}

}  // namespace
