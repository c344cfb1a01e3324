// bfloat16 and IEEE half as float32 and back, rounded to the nearest, ties to even; NaN stays NaN.
#pragma once

#include <stdint.h>
#include <string.h>

#include "order.h"

namespace {  // one copy a file: each file is compiled for another CPU, and a linker would take any of them

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float from_bfloat16(uint16_t value) { return float_of(uint32_t(value) << 16); }

inline uint16_t to_bfloat16(float value) {
  uint32_t bits = bits_of(value);
  if (value != value) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_half(uint16_t value) {
  uint32_t sign = uint32_t(value & 0x8000) << 16, exponent = value >> 10 & 31, fraction = value & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return float_of(sign | bits_of(float(fraction) * 0x1p-24f));
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t to_half(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // from 65520 on
  if (size < 0x38800000u)  // below 2^-14: beside a half, the last bit of a float is the last bit of a subnormal
    return uint16_t(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
  return uint16_t(sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10)));
}

inline float number_at(int type, const void *values, int64_t at) {
  if (type == ECOFLAP_FLOAT32) return static_cast<const float *>(values)[at];
  uint16_t value = static_cast<const uint16_t *>(values)[at];
  return type == ECOFLAP_BFLOAT16 ? from_bfloat16(value) : from_half(value);
}

inline void put_number(int type, void *values, int64_t at, float value) {
  if (type == ECOFLAP_FLOAT32)
    static_cast<float *>(values)[at] = value;
  else
    static_cast<uint16_t *>(values)[at] = type == ECOFLAP_BFLOAT16 ? to_bfloat16(value) : to_half(value);
}

}  // namespace
