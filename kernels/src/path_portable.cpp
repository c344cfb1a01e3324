// The portable path: plain C++ for any CPU. It saves the memory; it is not fast.
#include "int8_blocks.h"

namespace ecoflap {
namespace {

struct Sixteen {
  float at[kOutputs];
};

struct Two {
  Sixteen first, second;
};

// `kPairs`: whether two columns lie output by output.
template <int Type, bool kPairs>
struct Plain {
  static constexpr int kRows = 4, kRowsInChains = 4;
  using Input = float;
  using Sums = Sixteen;
  using Taken = Two;

  static Sums none() { return {}; }

  static Taken take(uint32_t mask, const uint8_t *&p) {
    Two two = {};
    for (; mask != 0; mask &= mask - 1, p += size_of(Type)) {
      int at = __builtin_ctz(mask);
      float value = read(p);
      if (kPairs)
        (at & 1 ? two.second : two.first).at[at >> 1] = value;
      else
        (at & 16 ? two.second : two.first).at[at & 15] = value;
    }
    return two;
  }

  static Taken whole(const uint8_t *&p) { return take(0xffffffffu, p); }

  static Sums add(Sums sums, const Taken &taken, const float *x) {
    for (int i = 0; i < kOutputs; ++i) sums.at[i] += taken.first.at[i] * x[0] + taken.second.at[i] * x[1];
    return sums;
  }

  static Sums plus(Sums sums, const Sums &more) {
    for (int i = 0; i < kOutputs; ++i) sums.at[i] += more.at[i];
    return sums;
  }

  static void store(const Sums &sums, float *out) { memcpy(out, sums.at, sizeof sums.at); }

 private:
  static float read(const uint8_t *p) {
    uint32_t bits = 0;
    memcpy(&bits, p, size_of(Type));
    return number_at(Type, &bits, 0);
  }
};

// In whole numbers, of 64 bits from the start.
struct Int8 : WithoutPlanes {
  static constexpr int kRows = 4;
  struct Taken {
    int8_t at[kOutputs][4];
  };
  struct Sums {
    int64_t at[kOutputs];
  };

  static Sums none() { return {}; }

  static Taken take(uint64_t mask, const uint8_t *&p) {
    Taken taken = {};
    for (; mask != 0; mask &= mask - 1) {
      int at = __builtin_ctzll(mask);
      taken.at[at / 4][at % 4] = int8_t(*p++);
    }
    return taken;
  }

  static Taken whole(const uint8_t *&p) {
    Taken taken;
    memcpy(taken.at, p, sizeof taken.at);
    p += sizeof taken.at;
    return taken;
  }

  static void add(Sums &sums, const Taken &taken, const uint8_t *x) {
    int16_t four[4];
    memcpy(four, x, sizeof four);
    for (int i = 0; i < kOutputs; ++i)
      for (int c = 0; c < 4; ++c) sums.at[i] += taken.at[i][c] * four[c];
  }

  static void add_to(int64_t (&totals)[kOutputs], const Sums &sums) {
    for (int i = 0; i < kOutputs; ++i) totals[i] += sums.at[i];
  }
};

bool always() { return true; }

}  // namespace

const Path kPortable = {
    "portable",
    "nothing",
    always,
    false,
    false,
    {product<Plain<ECOFLAP_FLOAT32, false>>, product<Plain<ECOFLAP_BFLOAT16, true>>,
     product<Plain<ECOFLAP_FLOAT16, false>>, whole_product<Int8>, whole_product<Int8>},
    {4, 4, 4, Int8::kRows, Int8::kRows},
    expand_by_value,
    nullptr,
    {4, 0, 2, 4, 4},
};

}  // namespace ecoflap
