// For each byte of a mask, where the bytes of its values go: what vpshufb and TBL take to do the work of vpexpandw.
// An index of 0x80, or of more, leaves a zero.
#pragma once

#include <stdint.h>

namespace {

struct ByteTables {
  alignas(64) uint8_t words[256][16];  // of 2 bytes
  alignas(64) uint8_t floats[256][8];  // of 4 bytes, as the number of the float; so of single bytes too
  // Two tables whose sum puts 16 bytes in place: that of the lower byte of a mask, with how many it has beside it, and
  // that of the upper byte.
  alignas(64) uint8_t lower[256][16];
  alignas(64) uint8_t upper[256][16];

  constexpr ByteTables() : words(), floats(), lower(), upper() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0, next = 0; bit < 8; ++bit) {
        bool kept = mask >> bit & 1;
        words[mask][2 * bit] = kept ? uint8_t(2 * next) : 0x80;
        words[mask][2 * bit + 1] = kept ? uint8_t(2 * next + 1) : 0x80;
        floats[mask][bit] = lower[mask][bit] = upper[mask][8 + bit] = kept ? uint8_t(next) : 0x80;
        next += kept;
        for (int at = 8; bit == 7 && at < 16; ++at) lower[mask][at] = uint8_t(next);
      }
  }
};

constexpr ByteTables kTables;

}  // namespace
