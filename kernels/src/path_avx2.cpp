// AVX2, FMA and F16C, as nearly every x86 CPU since 2013 has them: a table says for each byte of a mask how to shuffle
// its values into place.
#include "path.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include "blocks.h"
#include "byte_tables.h"
#include "int8_blocks.h"

namespace ecoflap {
namespace {

struct Sixteen {
  __m256 low, high;
};

struct Two {
  Sixteen first, second;
};

inline __m128i eight_words(uint32_t mask, const uint8_t *&p) {
  __m128i table = _mm_load_si128(reinterpret_cast<const __m128i *>(kTables.words[mask]));
  __m128i found = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)), table);
  p += 2 * count(mask);
  return found;
}

inline __m256 eight_floats(uint32_t mask, const uint8_t *&p) {
  __m128i table = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(kTables.floats[mask]));
  __m256i from = _mm256_cvtepi8_epi32(table);
  __m256i found = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)), from);
  p += 4 * count(mask);
  return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_srai_epi32(from, 31), found));
}

struct InFloat {
  static constexpr int kRows = 4, kRowsInChains = 2;
  using Input = float;
  using Sums = Sixteen;
  using Taken = Two;
  static Sums none() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Sums plus(const Sums &a, const Sums &b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static void store(const Sums &sums, float *out) {
    _mm256_storeu_ps(out, sums.low);
    _mm256_storeu_ps(out + 8, sums.high);
  }
  static Sums times(const Sixteen &w, float x, const Sums &sums) {
    __m256 all = _mm256_set1_ps(x);
    return {_mm256_fmadd_ps(w.low, all, sums.low), _mm256_fmadd_ps(w.high, all, sums.high)};
  }
  static Sums add(const Sums &sums, const Taken &taken, const float *x) {
    return times(taken.second, x[1], times(taken.first, x[0], sums));
  }
};

struct Float32 : InFloat {
  static Sixteen column(uint32_t mask, const uint8_t *&p) {
    __m256 low = eight_floats(mask & 255, p);
    return {low, eight_floats(mask >> 8 & 255, p)};
  }
  static Taken take(uint32_t mask, const uint8_t *&p) {
    Sixteen first = column(mask, p);
    return {first, column(mask >> 16, p)};
  }
  static Taken whole(const uint8_t *&p) {
    const float *from = reinterpret_cast<const float *>(p);
    p += 128;
    return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}, {_mm256_loadu_ps(from + 16), _mm256_loadu_ps(from + 24)}};
  }
};

struct Half : InFloat {
  static Sixteen column(uint32_t mask, const uint8_t *&p) {
    __m256 low = _mm256_cvtph_ps(eight_words(mask & 255, p));
    return {low, _mm256_cvtph_ps(eight_words(mask >> 8 & 255, p))};
  }
  static Taken take(uint32_t mask, const uint8_t *&p) {
    Sixteen first = column(mask, p);
    return {first, column(mask >> 16, p)};
  }
  static Taken whole(const uint8_t *&p) {
    const __m128i *from = reinterpret_cast<const __m128i *>(p);
    p += 64;
    __m256 parts[4];
    for (int i = 0; i < 4; ++i) parts[i] = _mm256_cvtph_ps(_mm_loadu_si128(from + i));
    return {{parts[0], parts[1]}, {parts[2], parts[3]}};
  }
};

struct Bfloat16 : InFloat {
  static Taken split(__m256i low, __m256i high) {
    __m256i upper = _mm256_set1_epi32(int(0xffff0000u));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(low, upper)), _mm256_castsi256_ps(_mm256_and_si256(high, upper))}};
  }
  static __m256i eight_pairs(uint32_t mask, const uint8_t *&p) {
    __m128i four = eight_words(mask & 255, p);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(four), eight_words(mask >> 8 & 255, p), 1);
  }
  static Taken take(uint32_t mask, const uint8_t *&p) {
    __m256i low = eight_pairs(mask, p);
    return split(low, eight_pairs(mask >> 16, p));
  }
  static Taken whole(const uint8_t *&p) {
    const __m256i *from = reinterpret_cast<const __m256i *>(p);
    p += 64;
    return split(_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1));
  }
};

// In whole numbers: bytes are made int16, and vpmaddwd adds pairs of columns. vpmaddubsw would take bytes, and cuts off.
struct Int8 : WithoutPlanes {
  static constexpr int kRows = 2;
  struct Taken {
    __m256i at[4];  // four columns of four outputs each
  };
  using Sums = Taken;  // two sums for an output
  static Sums none() {
    __m256i zero = _mm256_setzero_si256();
    return {{zero, zero, zero, zero}};
  }
  static __m128i sixteen_bytes(uint32_t mask, const uint8_t *&p) {
    __m128i lower = _mm_load_si128(reinterpret_cast<const __m128i *>(kTables.lower[mask & 255]));
    __m128i table = _mm_add_epi8(lower, *reinterpret_cast<const __m128i *>(kTables.upper[mask >> 8]));
    __m128i found = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)), table);
    p += count(mask);
    return found;
  }
  static Taken take(uint64_t mask, const uint8_t *&p) {
    Taken taken;
    for (int i = 0; i < 4; ++i, mask >>= 16) taken.at[i] = _mm256_cvtepi8_epi16(sixteen_bytes(mask & 0xffff, p));
    return taken;
  }
  static Taken whole(const uint8_t *&p) {
    Taken taken;
    for (int i = 0; i < 4; ++i, p += 16)
      taken.at[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return taken;
  }
  static void add(Sums &sums, const Taken &taken, const uint8_t *x) {
    long long four;
    memcpy(&four, x, sizeof four);
    __m256i all = _mm256_set1_epi64x(four);
    for (int i = 0; i < 4; ++i) sums.at[i] = _mm256_add_epi32(sums.at[i], _mm256_madd_epi16(taken.at[i], all));
  }
  static void add_to(int64_t (&totals)[kOutputs], const Sums &sums) {
    alignas(32) int32_t pairs[2 * kOutputs];
    for (int i = 0; i < 4; ++i) _mm256_store_si256(reinterpret_cast<__m256i *>(pairs + 8 * i), sums.at[i]);
    for (int i = 0; i < kOutputs; ++i) totals[i] += int64_t(pairs[2 * i]) + pairs[2 * i + 1];
  }
};

template <int Size>
inline const uint8_t *expand_sized(const uint16_t *masks, const uint8_t *values, uint8_t *out) {
  for (int64_t at = 0; at < kOutputs * kColumns; at += 16, ++masks)
    if constexpr (Size == 1) {
      _mm_storeu_si128(reinterpret_cast<__m128i *>(out + at), Int8::sixteen_bytes(*masks, values));
    } else if constexpr (Size == 2) {
      for (int half = 0; half < 2; ++half)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 2 * at + 16 * half), eight_words(*masks >> 8 * half & 255, values));
    } else {
      for (int half = 0; half < 2; ++half)
        _mm256_storeu_ps(reinterpret_cast<float *>(out + 4 * at + 32 * half), eight_floats(*masks >> 8 * half & 255, values));
    }
  return values;
}

inline const uint8_t *expand_256(int type, const uint16_t *masks, const uint8_t *values, void *tile) {
  uint8_t *out = static_cast<uint8_t *>(tile);
  if (size_of(type) == 1) return expand_sized<1>(masks, values, out);
  return size_of(type) == 4 ? expand_sized<4>(masks, values, out) : expand_sized<2>(masks, values, out);
}

// Eight rows of eight become eight columns.
inline void transpose(__m256i (&v)[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]), a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      b[i + 2 * k] = _mm256_unpacklo_epi64(a[i + k], a[i + k + 2]);
      b[i + 2 * k + 1] = _mm256_unpackhi_epi64(a[i + k], a[i + k + 2]);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

// Takes the next four bytes of all rows, those of the first eight and those of the others: a float, or two columns.
template <int Type>
inline void take_four_bytes(const uint16_t *masks, int64_t at, const uint8_t *&p, __m256i &low, __m256i &high) {
  if constexpr (Type == ECOFLAP_FLOAT32) {
    low = _mm256_castps_si256(eight_floats(masks[at] & 255, p));
    high = _mm256_castps_si256(eight_floats(masks[at] >> 8, p));
  } else if constexpr (Type == ECOFLAP_BFLOAT16) {
    uint32_t mask = mask_of(masks, at);
    low = Bfloat16::eight_pairs(mask, p);
    high = Bfloat16::eight_pairs(mask >> 16, p);
  } else {
    __m128i columns[4];
    for (int i = 0; i < 4; ++i) columns[i] = eight_words(masks[2 * at + i / 2] >> 8 * (i % 2) & 255, p);
    low = _mm256_set_m128i(_mm_unpackhi_epi16(columns[0], columns[2]), _mm_unpacklo_epi16(columns[0], columns[2]));
    high = _mm256_set_m128i(_mm_unpackhi_epi16(columns[1], columns[3]), _mm_unpacklo_epi16(columns[1], columns[3]));
  }
}

template <int Type>
inline const uint8_t *to_rows_of(const uint16_t *masks, const uint8_t *p, uint8_t *out, int64_t row_bytes) {
  constexpr int64_t kCount = Type == ECOFLAP_FLOAT32 ? kColumns : kColumns / 2;
  for (int64_t first = 0; first < kCount; first += 8, out += 32) {
    __m256i rows[2][8];
    for (int i = 0; i < 8; ++i) take_four_bytes<Type>(masks, first + i, p, rows[0][i], rows[1][i]);
    for (int half = 0; half < 2; ++half) {
      transpose(rows[half]);
      for (int i = 0; i < 8; ++i)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + (8 * half + i) * row_bytes), rows[half][i]);
    }
  }
  return p;
}

inline const uint8_t *to_rows_256(int type, const uint16_t *masks, const uint8_t *p, uint8_t *out, int64_t row_bytes) {
  if (type == ECOFLAP_FLOAT32) return to_rows_of<ECOFLAP_FLOAT32>(masks, p, out, row_bytes);
  return type == ECOFLAP_BFLOAT16 ? to_rows_of<ECOFLAP_BFLOAT16>(masks, p, out, row_bytes)
                                  : to_rows_of<ECOFLAP_FLOAT16>(masks, p, out, row_bytes);
}

}  // namespace

const Path kAvx2 = {
    "avx2",
    "AVX2, FMA and F16C",
    cpu_has_avx2,
    false,
    false,
    {product<Float32, expand_256, 4>, product<Bfloat16, expand_256, 4>, product<Half, expand_256, 4>, whole_product<Int8, expand_256, 4>, whole_product<Int8, expand_256, 4>},
    {4, 4, 4, Int8::kRows, Int8::kRows},
    expand_256,
    to_rows_256,
    {kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch},
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAvx2 = {"avx2", "AVX2, FMA and F16C", cpu_has_avx2, false, false, {}, {}, nullptr, nullptr, {}};
}
#endif
