// AMX's tiles in plain C++: what a path does with them is tested where no CPU has any. Shapes are held to as by the CPU: a
// tile that has no such rows, or is not configured, ends the program.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

struct Tile {
  int rows, bytes;
  uint8_t at[16][64];
};

thread_local Tile tiles[8];

inline void by_hand_config(const void *shapes) {
  const uint8_t *given = static_cast<const uint8_t *>(shapes);
  if (given[0] != 1) abort();
  for (int t = 0; t < 8; ++t) {
    uint16_t bytes;
    memcpy(&bytes, given + 16 + 2 * t, sizeof bytes);
    tiles[t] = {given[48 + t], bytes, {}};
    if (tiles[t].rows > 16 || tiles[t].bytes > 64) abort();
  }
}

inline void by_hand_zero(int t) {
  if (tiles[t].rows == 0) abort();
  memset(tiles[t].at, 0, sizeof tiles[t].at);
}

inline void by_hand_load(int t, const void *from, int64_t stride) {
  if (tiles[t].rows == 0) abort();
  for (int r = 0; r < tiles[t].rows; ++r)
    memcpy(tiles[t].at[r], static_cast<const uint8_t *>(from) + r * stride, size_t(tiles[t].bytes));
}

inline void by_hand_store(int t, void *to, int64_t stride) {
  if (tiles[t].rows == 0) abort();
  for (int r = 0; r < tiles[t].rows; ++r)
    memcpy(static_cast<uint8_t *>(to) + r * stride, tiles[t].at[r], size_t(tiles[t].bytes));
}

float half_of(const Tile &tile, int row, int column) {
  uint32_t bits = 0;
  memcpy(reinterpret_cast<uint8_t *>(&bits) + 2, tile.at[row] + 2 * column, 2);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline void by_hand_multiply(int c, int a, int b) {
  if (tiles[c].rows != tiles[a].rows || tiles[a].bytes / 4 != tiles[b].rows) abort();
  for (int m = 0; m < tiles[c].rows; ++m)
    for (int n = 0; n < tiles[c].bytes / 4; ++n) {
      float sum;
      memcpy(&sum, tiles[c].at[m] + 4 * n, sizeof sum);
      for (int k = 0; k < tiles[a].bytes / 4; ++k)
        for (int half = 0; half < 2; ++half) sum += half_of(tiles[a], m, 2 * k + half) * half_of(tiles[b], k, 2 * n + half);
      memcpy(tiles[c].at[m] + 4 * n, &sum, sizeof sum);
    }
}

inline void by_hand_multiply_bytes(int c, int a, int b) {
  if (tiles[c].rows != tiles[a].rows || tiles[a].bytes / 4 != tiles[b].rows) abort();
  for (int m = 0; m < tiles[c].rows; ++m)
    for (int n = 0; n < tiles[c].bytes / 4; ++n) {
      int32_t sum;
      memcpy(&sum, tiles[c].at[m] + 4 * n, sizeof sum);
      for (int k = 0; k < tiles[a].bytes; ++k)
        sum += int32_t(tiles[a].at[m][k]) * int8_t(tiles[b].at[k / 4][4 * n + k % 4]);
      memcpy(tiles[c].at[m] + 4 * n, &sum, sizeof sum);
    }
}

inline void by_hand_release() {
  for (Tile &tile : tiles) tile.rows = 0;
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#undef _tile_release
#define _tile_loadconfig by_hand_config
#define _tile_zero by_hand_zero
#define _tile_loadd by_hand_load
#define _tile_stored by_hand_store
#define _tile_dpbf16ps by_hand_multiply
#define _tile_dpbusd by_hand_multiply_bytes
#define _tile_release by_hand_release
