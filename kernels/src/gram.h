// Sums of products of tokens: X' X, the Gram matrix of a layer's inputs, for rows X of bfloat16.
//
// Products of two bfloat16 are exact in float32 (vdpbf16ps and tdpbf16ps take what is below 2^-126 for zero), so that a
// CPU that multiplies them in pairs sums what it would sum in float32, at twice the speed and more. The matrix is
// symmetric: of what is above the diagonal only squares on it are summed, of 48 features at most.
#pragma once

#include <stdint.h>

namespace ecoflap {

struct Tokens {
  const uint16_t *x;
  int64_t count, features, stride;
};

// Adds to `features` rows and columns of sums, by up to `threads` threads. Throws std::bad_alloc.
using AddGram = void (*)(const Tokens &tokens, float *sums, int threads);

// Each is there where the path that takes it is compiled.
void add_gram_avx512_bf16(const Tokens &tokens, float *sums, int threads);
void add_gram_amx(const Tokens &tokens, float *sums, int threads);

}  // namespace ecoflap
