// NEON, as every 64 bit ARM CPU has it: TBL puts values in place by the same tables as on AVX2. An
// emulator has run this, and no machine yet.
#include "path.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "blocks.h"
#include "byte_tables.h"
#include "int8_blocks.h"

namespace ecoflap {
namespace {

struct Sixteen {
  float32x4_t at[4];
};

struct Two {
  Sixteen first, second;
};

inline uint8x16_t eight_words(uint32_t mask, const uint8_t *&p) {
  uint8x16_t found = vqtbl1q_u8(vld1q_u8(p), vld1q_u8(kTables.words[mask]));
  p += 2 * count(mask);
  return found;
}

// Four floats by the lower half of the table for words: each float is two words that go together.
inline float32x4_t four_floats(uint32_t mask, const uint8_t *&p) {
  uint32_t twice = 0;
  for (int i = 0; i < 4; ++i) twice |= (mask >> i & 1) * (3u << 2 * i);
  float32x4_t found = vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(p), vld1q_u8(kTables.words[twice])));
  p += 4 * count(mask);
  return found;
}

struct InFloat {
  static constexpr int kRows = 4, kRowsInChains = 4;
  using Input = float;
  using Sums = Sixteen;
  using Taken = Two;
  static Sums none() { return {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}}; }
  static Sums plus(Sums a, const Sums &b) {
    for (int i = 0; i < 4; ++i) a.at[i] = vaddq_f32(a.at[i], b.at[i]);
    return a;
  }
  static void store(const Sums &sums, float *out) {
    for (int i = 0; i < 4; ++i) vst1q_f32(out + 4 * i, sums.at[i]);
  }
  static Sums add(Sums sums, const Taken &taken, const float *x) {
    for (int i = 0; i < 4; ++i) {
      sums.at[i] = vfmaq_n_f32(sums.at[i], taken.first.at[i], x[0]);
      sums.at[i] = vfmaq_n_f32(sums.at[i], taken.second.at[i], x[1]);
    }
    return sums;
  }
};

struct Float32 : InFloat {
  static Sixteen column(uint32_t mask, const uint8_t *&p) {
    Sixteen found;
    for (int i = 0; i < 4; ++i) found.at[i] = four_floats(mask >> 4 * i & 15, p);
    return found;
  }
  static Taken take(uint32_t mask, const uint8_t *&p) {
    Sixteen first = column(mask & 0xffff, p);
    return {first, column(mask >> 16, p)};
  }
  static Taken whole(const uint8_t *&p) { return take(0xffffffffu, p); }
};

struct Half : InFloat {
  static Sixteen column(uint32_t mask, const uint8_t *&p) {
    float16x8_t low = vreinterpretq_f16_u8(eight_words(mask & 255, p));
    float16x8_t high = vreinterpretq_f16_u8(eight_words(mask >> 8 & 255, p));
    return {{vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
             vcvt_high_f32_f16(high)}};
  }
  static Taken take(uint32_t mask, const uint8_t *&p) {
    Sixteen first = column(mask & 0xffff, p);
    return {first, column(mask >> 16, p)};
  }
  static Taken whole(const uint8_t *&p) { return take(0xffffffffu, p); }
};

struct Bfloat16 : InFloat {
  static Taken take(uint32_t mask, const uint8_t *&p) {
    Two two;
    for (int i = 0; i < 4; ++i) {
      uint32x4_t pairs = vreinterpretq_u32_u8(eight_words(mask >> 8 * i & 255, p));
      two.first.at[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
      two.second.at[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
    return two;
  }
  static Taken whole(const uint8_t *&p) { return take(0xffffffffu, p); }
};

// In whole numbers: bytes are made int16, and each column of a four has a sum of its own.
struct Int8 : WithoutPlanes {
  static constexpr int kRows = 1;
  struct Taken {
    int8x16_t at[4];  // four columns of four outputs each
  };
  struct Sums {
    int32x4_t at[kOutputs];
  };
  static Sums none() {
    Sums sums;
    for (int i = 0; i < kOutputs; ++i) sums.at[i] = vdupq_n_s32(0);
    return sums;
  }
  static uint8x8_t eight_bytes(uint32_t mask, const uint8_t *&p) {
    uint8x8_t found = vqtbl1_u8(vld1q_u8(p), vld1_u8(kTables.floats[mask]));
    p += count(mask);
    return found;
  }
  static Taken take(uint64_t mask, const uint8_t *&p) {
    Taken taken;
    for (int i = 0; i < 4; ++i, mask >>= 16) {
      uint8x8_t low = eight_bytes(mask & 255, p);
      taken.at[i] = vreinterpretq_s8_u8(vcombine_u8(low, eight_bytes(mask >> 8 & 255, p)));
    }
    return taken;
  }
  static Taken whole(const uint8_t *&p) {
    Taken taken;
    for (int i = 0; i < 4; ++i, p += 16) taken.at[i] = vreinterpretq_s8_u8(vld1q_u8(p));
    return taken;
  }
  static void add(Sums &sums, const Taken &taken, const uint8_t *x) {
    int16_t four[4];
    memcpy(four, x, sizeof four);
    int16x4_t all = vld1_s16(four);
    for (int i = 0; i < 4; ++i) {
      int16x8_t low = vmovl_s8(vget_low_s8(taken.at[i])), high = vmovl_s8(vget_high_s8(taken.at[i]));
      sums.at[4 * i] = vmlal_s16(sums.at[4 * i], vget_low_s16(low), all);
      sums.at[4 * i + 1] = vmlal_s16(sums.at[4 * i + 1], vget_high_s16(low), all);
      sums.at[4 * i + 2] = vmlal_s16(sums.at[4 * i + 2], vget_low_s16(high), all);
      sums.at[4 * i + 3] = vmlal_s16(sums.at[4 * i + 3], vget_high_s16(high), all);
    }
  }
  static void add_to(int64_t (&totals)[kOutputs], const Sums &sums) {
    for (int i = 0; i < kOutputs; ++i) totals[i] += vaddlvq_s32(sums.at[i]);
  }
};

}  // namespace

const Path kNeon = {
    "neon",
    "a 64 bit ARM CPU",
    cpu_has_neon,
    false,
    false,
    {product<Float32>, product<Bfloat16>, product<Half>, whole_product<Int8>, whole_product<Int8>},
    {4, 4, 4, Int8::kRows, Int8::kRows},
    expand_by_value,
    nullptr,
    {32, 32, 32, 32, 32},
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kNeon = {"neon", "a 64 bit ARM CPU", cpu_has_neon, false, false, {}, {}, nullptr, nullptr, {}};
}
#endif
