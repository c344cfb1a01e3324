// How several rows of x lie for a path that multiplies in tiles: as AMX loads them, 16 rows of 64 bytes at a time.
//
// Two runs of tiles, each from the first column to the last, are a band, and a product takes one band after the other.
// A band is 32 rows, of which each run has 16; of int8 with x in 16 bits it is 16 rows, of which the one run has the high
// bytes and the other the low ones (int8.h). A tile is 32 columns of bfloat16 and 64 of int8. Behind x's last
// column there are zeros, or in int8 what stands for them; a row that x has not is anything, and nobody reads what it gives.
#pragma once

#include "int8.h"

namespace ecoflap {

// Puts all rows of x in tiles, in memory of this thread.
const void *put_in_tiles(const Task &task, int threads);

// Writes a row's bytes to where it is in tiles, with zeros behind them to the last tile's end.
void put_line(const void *bytes, int64_t count, int64_t tiles, uint8_t *to);

}  // namespace ecoflap

namespace {  // one copy a file: some are compiled for CPUs with AMX alone, and a linker would take any of them

using namespace ecoflap;

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileLine = 64;  // bytes of a tile's row
constexpr int64_t kTileBytes = kTileRows * kTileLine;

// A panel is so many blocks, whose weights are put in place and then multiplied with all bands: a megabyte of a core's second
// cache, which x and sums pass through. Of few blocks whole rows have room, and no sum waits for the next slice of them; of
// many x is read from beyond less often, which pays where there is much of it.
constexpr int64_t kTilesOfPanel = 1024;
constexpr int64_t kMostBlocksOfPanel = 16;
inline int64_t blocks_of_panel(int64_t bands) { return bands <= 3 ? 4 : kMostBlocksOfPanel; }

// Whether x of a task lies in tiles.
inline bool lies_in_tiles(const Path &path, const Matrix &w, int64_t batch) {
  int64_t from = path.tiles_from[kind_of(w.type)];
  return from > 0 && batch >= from && w.padded <= kMostTiled;
}

inline bool has_planes(int type) { return is_int8(type) && !rounds_x_to_int8(type); }
inline int64_t rows_of_band(int type) { return has_planes(type) ? kTileRows : 2 * kTileRows; }
inline int64_t bands_of(const Matrix &w, int64_t batch) { return (batch + rows_of_band(w.type) - 1) / rows_of_band(w.type); }
inline int64_t tiles_of(const Matrix &w) { return rounded(w.padded * size_of(w.type), kTileLine) / kTileLine; }
inline int64_t band_bytes(const Matrix &w) { return 2 * tiles_of(w) * kTileBytes; }

// Where a row's first 64 bytes are, of the plane `low` where there are two; the next ones are a tile further on.
inline uint8_t *place_in_tiles(const Matrix &w, int64_t row, bool low, uint8_t *x) {
  int64_t rows = rows_of_band(w.type), in_band = row % rows, run = has_planes(w.type) ? low : in_band / kTileRows;
  return x + row / rows * band_bytes(w) + run * (band_bytes(w) / 2) + in_band % kTileRows * kTileLine;
}

// How many rows of x are gone through at a time: they are read anew for every block, and more would not stay in a core's
// cache. In tiles each panel reads them once, and what is put in place for them should serve many.
inline int64_t rows_at_a_time(const Path &path, const Matrix &w, int64_t batch) {
  int64_t bytes = lies_in_tiles(path, w, batch) ? int64_t(8) << 20 : int64_t(2) << 20, rows = bytes / (w.padded * 2 + 1);
  return rows < 64 ? 64 : rows / 32 * 32;
}

// Computes the outputs of blocks from `first` to before `last`; false where one's values do not end where they should.
// `finite` is what all_finite says of the task: otherwise some rows of x are computed in float.
inline bool multiplied(const Path &path, const Task &task, bool finite, int64_t first, int64_t last) {
  int kind = kind_of(task.weight.type);
  bool in_tiles = lies_in_tiles(path, task.weight, task.batch);
  bool fits = (in_tiles ? path.panel[kind] : path.product[kind])(task, first, last);
  for (int64_t block = first; fits && !finite && block < last; ++block) put_not_finite(task, block);
  return fits;
}

}  // namespace
