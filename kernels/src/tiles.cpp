// Puts rows of x in tiles: tiles.h.
#include "tiles.h"

#include <string.h>

namespace ecoflap {
namespace {

struct Putting {
  const Task &task;
  uint8_t *x;

  static void one(void *context, int64_t band) {
    const Putting &all = *static_cast<Putting *>(context);
    const Matrix &w = all.task.weight;
    int64_t first = band * rows_of_band(w.type), last = first + rows_of_band(w.type), size = real_size(w.type);
    for (int64_t row = first; row < last && row < rounded(all.task.batch, kTileRows); ++row) {
      const uint8_t *from = static_cast<const uint8_t *>(all.task.given) + row * all.task.stride * size;
      bool is_there = row < all.task.batch;
      put_line(is_there ? from : nullptr, is_there ? w.inputs * size : 0, tiles_of(w), place_in_tiles(w, row, false, all.x));
    }
  }
};

}  // namespace

void put_line(const void *bytes, int64_t count, int64_t tiles, uint8_t *to) {
  const uint8_t *from = static_cast<const uint8_t *>(bytes);
  int64_t whole = count / kTileLine, left = count % kTileLine;
  for (int64_t tile = 0; tile < whole; ++tile) memcpy(to + tile * kTileBytes, from + tile * kTileLine, kTileLine);
  for (int64_t tile = whole; tile < tiles; ++tile) memset(to + tile * kTileBytes, 0, kTileLine);
  if (left > 0) memcpy(to + whole * kTileBytes, from + whole * kTileLine, size_t(left));
}

const void *put_in_tiles(const Task &task, int threads) {
  int64_t bands = bands_of(task.weight, task.batch);
  Putting all{task, static_cast<uint8_t *>(memory_for_x(bands * band_bytes(task.weight)))};
  in_parallel(threads, bands, Putting::one, &all);
  return all.x;
}

}  // namespace ecoflap
