// AMX: 32 columns of a block, put in place, are the very tile that tdpbf16ps wants, so that up to 32 rows of x share
// them (as in SparAMX: Abdelfattah et al., 2025). One row alone, and types other than bfloat16, go as on any AVX-512.
#include "path.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "avx512_lanes.h"

namespace ecoflap {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kRowsAtOnce = 2 * kTileRows;
constexpr int64_t kTileBytes = 1024;

struct TileShapes {
  uint8_t palette = 1, start_row = 0, zeros[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Sums are in tiles 0 and 1, rows of x in 4 and 5, weights in 7; `rows` are those of x, 32 at most.
void set_shapes(int64_t rows) {
  TileShapes shapes;
  constexpr int kTiles[] = {0, 1, 4, 5, 7};
  for (int tile : kTiles) {
    bool second = tile == 1 || tile == 5;
    int64_t own = tile == 7 ? kTileRows : second ? rows - kTileRows : rows;
    if (own <= 0) continue;
    shapes.row_bytes[tile] = 64;
    shapes.rows[tile] = uint8_t(own < kTileRows ? own : kTileRows);
  }
  _tile_loadconfig(&shapes);
}

// A block's next 32 columns: where they are put in place, or where they lie already.
template <bool Full>
const uint8_t *next_tile(const uint16_t *masks, const uint8_t *&p, uint8_t *buffer) {
  if (Full) return (p += kTileBytes) - kTileBytes;
  __builtin_prefetch(masks + kAhead / 8);
  for (int64_t pair = 0; pair < kColumns / 2; ++pair) {
    __builtin_prefetch(p + kAhead);
    _mm512_store_si512(buffer + 64 * pair, words(mask_of(masks, pair), p));
  }
  return buffer;
}

void multiply_tile(const uint8_t *weights, const uint16_t *x, int64_t x_bytes, bool two) {
  _tile_loadd(7, weights, 64);
  _tile_loadd(4, x, x_bytes);
  _tile_dpbf16ps(0, 4, 7);
  if (!two) return;
  _tile_loadd(5, reinterpret_cast<const uint8_t *>(x) + kTileRows * x_bytes, x_bytes);
  _tile_dpbf16ps(1, 5, 7);
}

// A tile is multiplied when the one after it has been put in place: what was just written is slow to load. `p` is where
// the block's values begin; returns where they end.
template <bool Full>
const uint8_t *multiply_rows(const Task &task, int64_t block, const uint8_t *p, int64_t row, int64_t rows) {
  alignas(64) uint8_t buffers[2][kTileBytes];
  const Matrix &w = task.weight;
  const uint8_t *before = nullptr;
  const uint16_t *x = static_cast<const uint16_t *>(task.x) + row * w.padded;
  bool two = rows > kTileRows;
  set_shapes(rows);
  _tile_zero(0);
  if (two) _tile_zero(1);  // of a tile without a shape no instruction is valid
  for (int64_t c = 0; c < w.padded; c += kColumns) {
    const uint8_t *tile = next_tile<Full>(w.masks_of(block) + c, p, buffers[c / kColumns & 1]);
    if (before != nullptr) multiply_tile(before, x + c - kColumns, 2 * w.padded, two);
    before = tile;
  }
  if (before != nullptr) multiply_tile(before, x + w.padded - kColumns, 2 * w.padded, two);
  alignas(64) float sums[kRowsAtOnce][kOutputs];
  _tile_stored(0, sums[0], 64);
  if (two) _tile_stored(1, sums[kTileRows], 64);
  _tile_release();
  for (int64_t r = 0; r < rows; ++r) put_outputs(task, block, row + r, sums[r]);
  return p;
}

template <bool Full>
bool in_tiles_of(const Task &task, int64_t block, Values values) {
  for (int64_t row = 0; row < task.batch; row += kRowsAtOnce) {
    int64_t left = task.batch - row, rows = left < kRowsAtOnce ? left : kRowsAtOnce;
    if (multiply_rows<Full>(task, block, values.begin, row, rows) != values.end) return false;
  }
  return true;
}

bool in_tiles(const Task &task, int64_t block) {
  if (task.batch == 1) return product<Bfloat16>(task, block);
  const Matrix &w = task.weight;
  if (w.full) return in_tiles_of<true>(task, block, values_of(w, block));
  if (task.batch > kRowsAtOnce) {
    Values whole = put_in_place(w, block, expand_512);
    if (whole.begin != nullptr) return whole.end >= whole.begin && in_tiles_of<true>(task, block, whole);
  }
  return in_tiles_of<false>(task, block, values_of(w, block));
}

}  // namespace

const Path kAmx = {
    "amx",
    "AMX with bfloat16, and AVX-512 with VBMI2, VNNI and BF16",
    cpu_has_amx,
    true,
    true,
    {product<Float32, expand_512>, in_tiles, product<Half, expand_512>, whole_product<Int8<2>, expand_512>, whole_product<Int8<1>, expand_512>},
    {16, 1, 16, Int8<2>::kRows, Int8<1>::kRows},
    expand_512,
    to_rows_512,
    {256, 192, 256, 512, 512},
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAmx = {"amx", "AMX with bfloat16, and AVX-512 with VBMI2, VNNI and BF16", cpu_has_amx, true, true, {}, {}, nullptr, nullptr, {}};
}
#endif
