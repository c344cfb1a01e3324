// tdpbf16ps: sums of products of 32 tokens at a time, in float32. It wants one factor feature by feature and the other
// pair of tokens by pair of tokens, so that each 16 features lie twice: as tiles of 16 features by 16 pairs, and as their
// transpose.
#include "amx_tiles.h"
#include "gram.h"

#ifdef ECOFLAP_HAS_AMX

namespace ecoflap {
namespace {

constexpr int64_t kPairsOfTile = 16;
constexpr int64_t kTokensAtOnce = 512;  // that are added up one behind the other: the fewer, the less is rounded away
constexpr int64_t kSquare = 2 * kTileRows;
constexpr int64_t kPanelSquares = 8;  // columns whose tiles stay in a core's second cache: a quarter of a megabyte

int64_t tiles_for(int64_t tokens) { return rounded(tokens, 2 * kPairsOfTile) / (2 * kPairsOfTile); }

struct Adding {
  Tokens tokens;
  int64_t tiles, squares;  // of tokens, and of features: a square is two tiles wide
  uint8_t *by_feature, *by_pair;
  float *sums;

  int64_t run(int64_t features_tile) const { return features_tile * tiles * kTileBytes; }
};

__m512i pairs_at(const Tokens &tokens, int64_t token, int64_t feature) {
  __mmask16 inside = feature >= tokens.features ? 0 : tokens.features - feature >= 16 ? 0xffff
                     : __mmask16((1 << (tokens.features - feature)) - 1);
  const uint16_t *first = tokens.x + token * tokens.stride + feature;
  __m256i low = token < tokens.count ? _mm256_maskz_loadu_epi16(inside, first) : _mm256_setzero_si256();
  __m256i high = token + 1 < tokens.count ? _mm256_maskz_loadu_epi16(inside, first + tokens.stride) : _mm256_setzero_si256();
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// Puts 32 features of all tokens into tiles; what is not there is zero.
void put_square(void *context, int64_t square) {
  const Adding &all = *static_cast<const Adding *>(context);
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t tile = 0; tile < all.tiles; ++tile) {
      int64_t at = all.run(2 * square + half) + tile * kTileBytes;
      __m512i v[kPairsOfTile];
      for (int64_t pair = 0; pair < kPairsOfTile; ++pair) {
        v[pair] = pairs_at(all.tokens, 2 * (tile * kPairsOfTile + pair), (2 * square + half) * kTileRows);
        _mm512_store_si512(all.by_pair + at + pair * kTileLine, v[pair]);
      }
      put_rows(v, all.by_feature + at, kTileLine);
    }
}

// Adds the sums of 32 features with 32 others.
void add_square(const Adding &all, int64_t row, int64_t column) {
  const uint8_t *rows = all.by_feature + all.run(2 * row), *columns = all.by_pair + all.run(2 * column);
  int64_t next = all.run(1);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < next; at += kTileBytes) {
    _tile_loadd(4, rows + at, kTileLine);
    _tile_loadd(6, columns + at, kTileLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, columns + next + at, kTileLine);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, rows + next + at, kTileLine);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(kLine) float found[kSquare][kSquare];
  constexpr int64_t kLineOfSquare = kSquare * int64_t(sizeof(float));
  _tile_stored(0, found[0], kLineOfSquare);
  _tile_stored(1, found[0] + kTileRows, kLineOfSquare);
  _tile_stored(2, found[kTileRows], kLineOfSquare);
  _tile_stored(3, found[kTileRows] + kTileRows, kLineOfSquare);
  int64_t features = all.tokens.features, width = features - column * kSquare;
  for (int64_t i = 0; i < kSquare && row * kSquare + i < features; ++i) {
    float *to = all.sums + (row * kSquare + i) * features + column * kSquare;
    for (int64_t k = 0; k < (width < kSquare ? width : kSquare); ++k) to[k] += found[i][k];
  }
}

// Adds a few columns' sums, from their own rows down.
void add_panel(void *context, int64_t panel) {
  const Adding &all = *static_cast<const Adding *>(context);
  int64_t first = panel * kPanelSquares, last = first + kPanelSquares < all.squares ? first + kPanelSquares : all.squares;
  set_shapes(kTileRows, kTileRows);
  for (int64_t row = first; row < all.squares; ++row)
    for (int64_t column = first; column < last && column <= row; ++column) add_square(all, row, column);
  _tile_release();
}

}  // namespace

void add_gram_amx(const Tokens &tokens, float *sums, int threads) {
  int64_t squares = rounded(tokens.features, kSquare) / kSquare, panels = (squares + kPanelSquares - 1) / kPanelSquares;
  int64_t bytes = 2 * squares * tiles_for(tokens.count < kTokensAtOnce ? tokens.count : kTokensAtOnce) * kTileBytes;
  uint8_t *memory = static_cast<uint8_t *>(memory_for_x(2 * bytes));
  for (int64_t first = 0; first < tokens.count; first += kTokensAtOnce) {
    int64_t left = tokens.count - first, count = left < kTokensAtOnce ? left : kTokensAtOnce;
    Tokens some{tokens.x + first * tokens.stride, count, tokens.features, tokens.stride};
    Adding all{some, tiles_for(count), squares, memory, memory + bytes, sums};
    in_parallel(threads, squares, put_square, &all);
    in_parallel(threads, panels, add_panel, &all);  // the first is the longest
  }
}

}  // namespace ecoflap
#endif
