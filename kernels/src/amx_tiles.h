// What all code for AMX begins with: whether the compiler has its instructions, and the shapes of tiles.
#pragma once

// gcc and clang name them differently.
#if (defined(__AMX_TILE__) || defined(__AMXTILE__)) && (defined(__AMX_BF16__) || defined(__AMXBF16__)) && \
    (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && \
    defined(__AVX512BF16__)
#define ECOFLAP_HAS_AMX
#include "avx512_lanes.h"
#include "tiles.h"

namespace {

struct TileShapes {
  uint8_t palette = 1, start_row = 0, zeros[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// To a compiler a tile's instructions read no memory: what they are given is to be there before them.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

// Sums are in tiles 0 to 3, in rows of two lots by columns of two; rows are in 4 and 5, columns in 6 and 7. `first` and
// `second` are how many rows each lot has; what is not there has no shape.
inline void set_shapes(int64_t first, int64_t second) {
  TileShapes shapes;
  const int64_t rows[] = {first, first, second, second, first, second, kTileRows, kTileRows};
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = rows[tile] > 0 ? uint16_t(kTileLine) : 0;
    shapes.rows[tile] = uint8_t(rows[tile]);
  }
  settle_memory();
  _tile_loadconfig(&shapes);
}

}  // namespace
#endif
