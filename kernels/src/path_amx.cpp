// AMX: 32 columns of a block in bfloat16 (64 in int8), put in place, are the very tile that tdpbf16ps (tdpbusd) wants, so
// that many rows of x share them (as in SparAMX: Abdelfattah et al., 2025). One row alone, few of int8, and types other
// than these go as on any AVX-512. tiles.h says how x lies.
//
// Sums are in tiles 0 to 3: of the band's first run with one block and with the next, then of its second run. x is in 4
// and 5, weights are in 6 and 7.
#include "amx_tiles.h"
#include "path.h"

#ifdef ECOFLAP_HAS_AMX

namespace ecoflap {
namespace {

// What two blocks and a band add up to, or as much of it as there is.
template <class Sum>
struct alignas(kLine) Sums {
  Sum of[2][2][kTileRows][kOutputs];  // by run, by block

  void store(bool two_runs, bool two_blocks) {
    _tile_stored(0, of[0][0], kTileLine);
    if (two_blocks) _tile_stored(1, of[0][1], kTileLine);
    if (two_runs) _tile_stored(2, of[1][0], kTileLine);
    if (two_runs && two_blocks) _tile_stored(3, of[1][1], kTileLine);
  }
  void load(bool two_runs, bool two_blocks) const {
    _tile_loadd(0, of[0][0], kTileLine);
    if (two_blocks) _tile_loadd(1, of[0][1], kTileLine);
    if (two_runs) _tile_loadd(2, of[1][0], kTileLine);
    if (two_runs && two_blocks) _tile_loadd(3, of[1][1], kTileLine);
  }
};

void begin_sums(bool two_runs, bool two_blocks) {
  _tile_zero(0);
  if (two_blocks) _tile_zero(1);  // of a tile without a shape no instruction is valid
  if (two_runs) _tile_zero(2);
  if (two_runs && two_blocks) _tile_zero(3);
}

// Products of bfloat16 are added up in float32.
struct InBfloat16 {
  using Sum = float;
  static void add_first() { _tile_dpbf16ps(0, 4, 6); }
  static void add_first_second() { _tile_dpbf16ps(1, 4, 7); }
  static void add_second() { _tile_dpbf16ps(2, 5, 6); }
  static void add_second_second() { _tile_dpbf16ps(3, 5, 7); }

  static void finish(const Task &task, int64_t block, int64_t row, const float (&first)[kTileRows][kOutputs],
                     const float (&second)[kTileRows][kOutputs]) {
    for (int64_t i = 0; i < 2 * kTileRows && row + i < task.batch; ++i)
      put_outputs(task, block, row + i, i < kTileRows ? first[i] : second[i - kTileRows]);
  }
};

// Products of bytes, of which those of x have no sign, are added up in 32 bits.
struct InBytes {
  using Sum = int32_t;
  static void add_first() { _tile_dpbusd(0, 4, 6); }
  static void add_first_second() { _tile_dpbusd(1, 4, 7); }
  static void add_second() { _tile_dpbusd(2, 5, 6); }
  static void add_second_second() { _tile_dpbusd(3, 5, 7); }

  static void finish(const Task &task, int64_t block, int64_t row, const int32_t (&first)[kTileRows][kOutputs],
                     const int32_t (&second)[kTileRows][kOutputs]) {
    bool planes = has_planes(task.weight.type);
    for (int64_t i = 0; i < rows_of_band(task.weight.type) && row + i < task.batch; ++i) {
      const int32_t *own = i < kTileRows ? first[i] : second[i - kTileRows];
      int64_t sums[kOutputs];
      for (int k = 0; k < kOutputs; ++k) sums[k] = planes ? 256 * int64_t(first[i][k]) + second[i][k] : own[k];
      finish_whole(task, block, row + i, sums, planes ? Int8<2>::kAdded : Int8<1>::kAdded);
    }
  }
};

// A band of x: where its runs begin, and how many rows each has.
struct Band {
  Band(const Task &task, int64_t number) : first_row(number * rows_of_band(task.weight.type)) {
    const Matrix &w = task.weight;
    int64_t left = task.batch - first_row;
    first = static_cast<const uint8_t *>(task.x) + number * band_bytes(w);
    second = first + band_bytes(w) / 2;
    rows = left < kTileRows ? left : kTileRows;
    more_rows = has_planes(w.type) ? rows : left - rows < kTileRows ? left - rows : kTileRows;
  }
  int64_t first_row, rows, more_rows;
  const uint8_t *first, *second;
};

// Puts the next 32 columns of a block in place; returns where the values after them are. What comes later is asked for,
// line by line.
inline const uint8_t *put_columns(int type, const uint16_t *masks, const uint8_t *p, uint8_t *to) {
  __builtin_prefetch(masks + kAhead / 8);
  if (is_int8(type)) {
    for (int64_t four = 0; four < kColumns / 4; ++four) {
      __builtin_prefetch(p + kAhead);
      _mm512_store_si512(to + kLine * four, bytes(mask_of_four(masks, four), p));
    }
    return p;
  }
  for (int64_t pair = 0; pair < kColumns / 2; ++pair) {
    __builtin_prefetch(p + kAhead);
    _mm512_store_si512(to + kLine * pair, words(mask_of(masks, pair), p));
  }
  return p;
}

// Puts some tiles of a block where they would lie if nothing were pruned; returns where the values after them are.
const uint8_t *put_tiles(const Matrix &w, int64_t block, int64_t first, int64_t last, const uint8_t *p, uint8_t *to) {
  int64_t columns = kTileLine / size_of(w.type), bytes = kOutputs * kColumns * size_of(w.type);
  const uint16_t *masks = w.masks_of(block);
  for (int64_t c = first * columns; c < last * columns; c += kColumns, to += bytes) {
    if (c < w.padded)
      p = put_columns(w.type, masks + c, p, to);
    else
      memset(to, 0, size_t(bytes));  // half a tile, of int8
  }
  return p;
}

// Whether tiles lie in the packed matrix as they are multiplied.
bool lies_in_place(const Matrix &w) { return w.full && w.padded * size_of(w.type) % kTileLine == 0; }

// Few rows of x: each tile is taken out of the packed values for the band, and multiplied when the one after it has been
// put in place: what was just written is slow to load.
template <class In>
bool multiply_band(const Task &task, int64_t block, const Band &band) {
  alignas(kLine) uint8_t buffers[2][kTileBytes];
  const Matrix &w = task.weight;
  const uint8_t *p = w.values_of(block), *before = nullptr;
  bool two = band.more_rows > 0, in_place = lies_in_place(w);
  int64_t count = tiles_of(w);
  set_shapes(band.rows, band.more_rows);
  begin_sums(two, false);
  for (int64_t tile = 0; tile <= count; ++tile) {
    const uint8_t *weights = p;
    if (tile < count && in_place) {
      p += kTileBytes;
    } else if (tile < count) {
      p = put_tiles(w, block, tile, tile + 1, p, buffers[tile & 1]);
      settle_memory();
      weights = buffers[tile & 1];
    }
    if (before != nullptr) {
      _tile_loadd(6, before, kTileLine);
      _tile_loadd(4, band.first + (tile - 1) * kTileBytes, kTileLine);
      In::add_first();
      if (two) {
        _tile_loadd(5, band.second + (tile - 1) * kTileBytes, kTileLine);
        In::add_second();
      }
    }
    before = weights;
  }
  Sums<typename In::Sum> sums;
  sums.store(two, false);
  _tile_release();
  In::finish(task, block, band.first_row, sums.of[0][0], sums.of[1][0]);
  return p == w.values_of(block + 1);
}

// Weights of two blocks that are in place: so many tiles of each.
struct InPlace {
  const uint8_t *first, *second;
  int64_t tiles;
};

// A share of a slice of the next band, which is asked for while this one is multiplied: `lines` of each tile of both runs,
// from `first` on.
struct Ahead {
  const uint8_t *x, *more;
  int64_t first, lines;

  void ask(int64_t at) const {
    for (int64_t line = first; line < first + lines; ++line) {
      __builtin_prefetch(x + at + line * kTileLine, 0, 2);
      __builtin_prefetch(more + at + line * kTileLine, 0, 2);
    }
  }
};

// Adds a slice of two blocks and of a band to the sums. Each tile that is loaded is multiplied twice.
template <class In>
void add_slice(const InPlace &w, const uint8_t *x, const uint8_t *more, const Ahead &ahead) {
  for (int64_t at = 0; at < w.tiles * kTileBytes; at += kTileBytes) {
    _tile_loadd(4, x + at, kTileLine);
    _tile_loadd(6, w.first + at, kTileLine);
    In::add_first();
    if (w.second != nullptr) {
      _tile_loadd(7, w.second + at, kTileLine);
      In::add_first_second();
    }
    if (more != nullptr) {
      _tile_loadd(5, more + at, kTileLine);
      In::add_second();
      if (w.second != nullptr) In::add_second_second();
    }
    ahead.ask(at);
  }
}

// The blocks of a panel: their weights are put in place slice by slice, and each slice is multiplied with all bands.
template <class In>
class Panelled {
 public:
  Panelled(const Task &task, int64_t first, int64_t last)
      : task_(task), w_(task.weight), first_(first), count_(last - first), bands_(bands_of(w_, task.batch)) {
    int64_t most = kTilesOfPanel / count_, slices = (tiles_of(w_) + most - 1) / most;
    each_ = (tiles_of(w_) + slices - 1) / slices;
  }

  // Whether there is memory for it.
  bool is_ready() {
    if (!lies_in_place(w_)) weights_ = static_cast<uint8_t *>(scratch(kForBlock, count_ * each_ * kTileBytes));
    if (each_ < tiles_of(w_)) sums_ = static_cast<Wide *>(scratch(kForSums, bands_ * pairs() * int64_t(sizeof(Wide))));
    return (weights_ != nullptr || lies_in_place(w_)) && (sums_ != nullptr || each_ == tiles_of(w_));
  }

  bool multiply() {
    int64_t tiles = tiles_of(w_);
    const uint8_t *at[kMostBlocksOfPanel];
    for (int64_t i = 0; i < count_; ++i) at[i] = w_.values_of(first_ + i);
    set_shapes(kTileRows, kTileRows);
    for (int64_t from = 0; from < tiles; from += each_) {
      int64_t to = from + each_ < tiles ? from + each_ : tiles;
      for (int64_t i = 0; i < count_; ++i) {
        in_place_[i] = lies_in_place(w_) ? at[i] : weights_ + i * each_ * kTileBytes;
        at[i] = lies_in_place(w_) ? at[i] + (to - from) * kTileBytes
                                  : put_tiles(w_, first_ + i, from, to, at[i], weights_ + i * each_ * kTileBytes);
      }
      settle_memory();
      for (int64_t band = 0; band < bands_; ++band) add_band(band, from, to);
    }
    _tile_release();
    for (int64_t i = 0; i < count_; ++i)
      if (at[i] != w_.values_of(first_ + i + 1)) return false;
    return true;
  }

 private:
  using Wide = Sums<typename In::Sum>;

  int64_t pairs() const { return (count_ + 1) / 2; }

  void add_band(int64_t number, int64_t from, int64_t to) {
    Band band(task_, number);
    bool two_runs = band.more_rows > 0, is_first = from == 0, is_last = to == tiles_of(w_);
    const uint8_t *x = band.first + from * kTileBytes, *more = two_runs ? band.second + from * kTileBytes : nullptr;
    int64_t lines = number + 1 < bands_ ? (kTileRows + pairs() - 1) / pairs() : 0;  // a pair's share; the last has less
    for (int64_t pair = 0; pair < pairs(); ++pair) {
      bool two_blocks = 2 * pair + 1 < count_;
      Wide own, *sums = sums_ == nullptr ? &own : sums_ + number * pairs() + pair;
      if (is_first)
        begin_sums(two_runs, two_blocks);
      else
        sums->load(two_runs, two_blocks);
      int64_t asked = pair * lines < kTileRows ? pair * lines : kTileRows;
      Ahead ahead{x + band_bytes(w_), band.second + from * kTileBytes + band_bytes(w_), asked,
                  lines < kTileRows - asked ? lines : kTileRows - asked};
      add_slice<In>({in_place_[2 * pair], two_blocks ? in_place_[2 * pair + 1] : nullptr, to - from}, x, more, ahead);
      sums->store(two_runs, two_blocks);
      for (int i = 0; is_last && i < (two_blocks ? 2 : 1); ++i)
        In::finish(task_, first_ + 2 * pair + i, band.first_row, sums->of[0][i], sums->of[1][i]);
    }
  }

  const Task &task_;
  const Matrix &w_;
  int64_t first_, count_, bands_, each_;
  uint8_t *weights_ = nullptr;
  Wide *sums_ = nullptr;
  const uint8_t *in_place_[kMostBlocksOfPanel] = {};
};

template <class In>
bool in_tiles(const Task &task, int64_t first, int64_t last) {
  int64_t bands = bands_of(task.weight, task.batch);
  if (bands > 1 && tiles_of(task.weight) > 0) {
    Panelled<In> panelled(task, first, last);
    if (panelled.is_ready()) return panelled.multiply();
  }
  bool fits = true;
  for (int64_t block = first; block < last; ++block)
    for (int64_t band = 0; band < bands; ++band) fits &= multiply_band<In>(task, block, Band(task, band));
  return fits;
}

}  // namespace

const Path kAmx = {
    "amx",
    "AMX with bfloat16 and int8, and AVX-512 with VBMI2, VNNI and BF16",
    cpu_has_amx,
    true,
    true,
    {product<Float32, expand_512>, product<Bfloat16, expand_512>, product<Half, expand_512>, whole_product<Int8<2>, expand_512>, whole_product<Int8<1>, expand_512>},
    {16, 16, 16, Int8<2>::kRows, Int8<1>::kRows},
    expand_512,
    to_rows_512,
    {256, kAnyBatch, 256, kAnyBatch, kAnyBatch},
    add_gram_amx,
    {nullptr, in_tiles<InBfloat16>, nullptr, in_tiles<InBytes>, in_tiles<InBytes>},
    {0, 2, 0, 3, 5},
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAmx = {"amx", "AMX with bfloat16 and int8, and AVX-512 with VBMI2, VNNI and BF16", cpu_has_amx, true, true, {}, {}, nullptr, nullptr, {}};
}
#endif
