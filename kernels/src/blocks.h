// The product of a block, for any vector unit: take two columns of 16 outputs out of the packed values, multiply each
// with its input, add. A path says what a vector of 16 sums is (`Lanes`), and how two columns are taken.
//
// What is pruned is not read: the masks say how many values two columns have, and an expanding load puts them in place.
// Several rows of x share what was taken, and blocks side by side share what is loaded of x, where a path has registers for
// the sums of both. Sums of few rows are kept in two chains, so that an addition need not wait for the one before it.
#pragma once

#include "numbers.h"
#include "path.h"

namespace {

using namespace ecoflap;

constexpr int kAhead = 2048;     // bytes of values fetched in advance; masks a quarter as far
constexpr int64_t kPairs = 64;  // of columns that are added up at a time

inline uint32_t mask_of(const uint16_t *masks, int64_t pair) {
  uint32_t mask;
  memcpy(&mask, masks + 2 * pair, sizeof mask);
  return mask;
}

inline int64_t count(uint32_t mask) { return __builtin_popcount(mask); }

// Adds the bias to numbers of one type and writes them; the type is known when this is compiled, so that a compiler does
// many at a time.
template <int Type>
inline void put_biased(const float *sums, const void *bias, int64_t first, int64_t count, void *y, int64_t at) {
  for (int64_t i = 0; i < count; ++i)
    put_number(Type, y, at + i, bias == nullptr ? sums[i] + 0.0f : sums[i] + number_at(Type, bias, first + i));
}

// Adds the bias and writes the 16 numbers of one row, or as many as the matrix has.
inline void put_outputs(const Task &task, int64_t block, int64_t row, const float *sums) {
  const Matrix &w = task.weight;
  int64_t first = block * kOutputs, left = w.outputs - first, at = row * w.outputs + first;
  int64_t count = left < kOutputs ? left : kOutputs;
  switch (real_type(task.in_out)) {
    case ECOFLAP_FLOAT32: return put_biased<ECOFLAP_FLOAT32>(sums, task.bias, first, count, task.y, at);
    case ECOFLAP_BFLOAT16: return put_biased<ECOFLAP_BFLOAT16>(sums, task.bias, first, count, task.y, at);
    default: return put_biased<ECOFLAP_FLOAT16>(sums, task.bias, first, count, task.y, at);
  }
}

// Takes two columns of each block and adds them to one chain of sums. What is taken of x serves all blocks.
template <class Lanes, int Blocks, int Rows, bool Full>
__attribute__((always_inline)) inline void step(typename Lanes::Sums (&sums)[Blocks][Rows],
                                                const uint16_t *const (&masks)[Blocks], int64_t pair,
                                                const uint8_t *(&p)[Blocks], const typename Lanes::Input *x) {
  typename Lanes::Taken taken[Blocks];
#pragma GCC unroll 3
  for (int b = 0; b < Blocks; ++b) {
    __builtin_prefetch(p[b] + kAhead);
    taken[b] = Full ? Lanes::whole(p[b]) : Lanes::take(mask_of(masks[b], pair), p[b]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
    for (int b = 0; b < Blocks; ++b) sums[b][r] = Lanes::add(sums[b][r], taken[b], x + 2 * (pair * Rows + r));
}

// Sums over some columns, in two chains of as many rows as a path has registers for; moves on to where the values go on.
template <class Lanes, int Blocks, int Rows, bool Full>
inline void add_columns(const uint16_t *const (&masks)[Blocks], int64_t first, int64_t last,
                        const uint8_t *(&values)[Blocks], const typename Lanes::Input *x,
                        typename Lanes::Sums (&totals)[Blocks][Rows]) {
  typename Lanes::Sums sums[Blocks][Rows], others[Blocks][Rows];
  constexpr bool kTwo = Rows <= Lanes::kRowsInChains;
  typename Lanes::Sums(&second)[Blocks][Rows] = kTwo ? others : sums;
  const uint8_t *p[Blocks];  // in registers, which what is moved on is not
  for (int b = 0; b < Blocks; ++b) {
    p[b] = values[b];
    for (int r = 0; r < Rows; ++r) sums[b][r] = others[b][r] = Lanes::none();
  }
  for (int64_t pair = first; pair < last; pair += 4) {
    for (int b = 0; b < Blocks; ++b) __builtin_prefetch(masks[b] + 2 * pair + kAhead / 8);
    step<Lanes, Blocks, Rows, Full>(sums, masks, pair, p, x);
    step<Lanes, Blocks, Rows, Full>(second, masks, pair + 1, p, x);
    step<Lanes, Blocks, Rows, Full>(sums, masks, pair + 2, p, x);
    step<Lanes, Blocks, Rows, Full>(second, masks, pair + 3, p, x);
  }
  for (int b = 0; b < Blocks; ++b) {
    values[b] = p[b];
    for (int r = 0; r < Rows; ++r) {
      typename Lanes::Sums all = kTwo ? Lanes::plus(sums[b][r], others[b][r]) : sums[b][r];
      totals[b][r] = Lanes::plus(totals[b][r], all);
    }
  }
}

// Sums of `Rows` rows from `row` on: of a few columns at a time, then of those sums, so that a long row is no less exact
// than a short one. `p` is where the blocks' values begin, and then where they end.
template <class Lanes, int Blocks, int Rows, bool Full>
inline void add_up(const Task &task, int64_t block, const uint8_t *(&p)[Blocks], int64_t row) {
  const Matrix &w = task.weight;
  const typename Lanes::Input *x = static_cast<const typename Lanes::Input *>(task.x) + row * w.padded;
  const uint16_t *masks[Blocks];
  typename Lanes::Sums totals[Blocks][Rows];
  for (int b = 0; b < Blocks; ++b) {
    masks[b] = w.masks_of(block + b);
    for (int r = 0; r < Rows; ++r) totals[b][r] = Lanes::none();
  }
  for (int64_t first = 0, pairs = w.padded / 2; first < pairs; first += kPairs) {
    int64_t last = first + kPairs < pairs ? first + kPairs : pairs;
    add_columns<Lanes, Blocks, Rows, Full>(masks, first, last, p, x, totals);
  }
  for (int b = 0; b < Blocks; ++b)
    for (int r = 0; r < Rows; ++r) {
      float out[kOutputs];
      Lanes::store(totals[b][r], out);
      put_outputs(task, block + b, row + r, out);
    }
}

// Where blocks' values lie.
template <int Blocks>
struct Values {
  const uint8_t *begin[Blocks], *end[Blocks];
};

template <int Blocks>
inline Values<Blocks> values_of(const Matrix &w, int64_t block) {
  Values<Blocks> values;
  for (int b = 0; b < Blocks; ++b) values.begin[b] = w.values_of(block + b), values.end[b] = w.values_of(block + b + 1);
  return values;
}

// Puts a block's values where they would lie if none were pruned, in memory of this thread: with several groups of rows
// that is faster than to take them out of the packed ones for each. None where there is no memory; an end before the
// beginning where the block is damaged.
inline Values<1> put_in_place(const Matrix &w, int64_t block, Expand expand) {
  int64_t bytes = kOutputs * kColumns * size_of(w.type), count = w.padded / kColumns;
  uint8_t *begin = static_cast<uint8_t *>(scratch(kForBlock, bytes * count));
  if (begin == nullptr) return {};
  const uint8_t *p = w.values_of(block);
  const uint16_t *masks = w.masks_of(block);
  for (int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(masks + i * kColumns + kAhead / 8);
    p = expand(w.type, masks + i * kColumns, p, begin + bytes * i);
  }
  return {{begin}, {p == w.values_of(block + 1) ? begin + bytes * count : begin - 1}};
}

// As many rows at a time as there are registers for, then half as many, and so on: `rows_from` says the same.
template <class Sums, int Blocks, int Rows, bool Full>
inline bool in_groups(const Task &task, int64_t block, const Values<Blocks> &values, int64_t row) {
  for (; task.batch - row >= Rows; row += Rows) {
    const uint8_t *p[Blocks];
    for (int b = 0; b < Blocks; ++b) p[b] = values.begin[b];
    Sums::template add<Blocks, Rows, Full>(task, block, p, row);
    for (int b = 0; b < Blocks; ++b)
      if (p[b] != values.end[b]) return false;
  }
  if constexpr (Rows > 1) return in_groups<Sums, Blocks, Rows / 2, Full>(task, block, values, row);
  return true;
}

// `Sums` adds up a few rows; `expand` is the path's own where that is fast, or null. Of fewer `Groups` of rows each takes its
// values out of the packed ones.
template <class Sums, int Blocks, Expand expand, int Groups>
inline bool product_of(const Task &task, int64_t block) {
  Values<Blocks> values = values_of<Blocks>(task.weight, block);
  if (task.weight.full) return in_groups<Sums, Blocks, Sums::kRows, true>(task, block, values, 0);
  if constexpr (expand != nullptr && Blocks == 1) {
    if (task.batch >= Groups * Sums::kRows) {
      Values<1> whole = put_in_place(task.weight, block, expand);
      if (whole.begin[0] != nullptr)
        return whole.end[0] >= whole.begin[0] && in_groups<Sums, 1, Sums::kRows, true>(task, block, whole, 0);
    }
  }
  return in_groups<Sums, Blocks, Sums::kRows, false>(task, block, values, 0);
}

// So many blocks side by side as a path has registers for, then one after the other; none is put in place with others.
template <class Sums, Expand expand, int Groups>
bool product_by(const Task &task, int64_t first, int64_t last) {
  bool fits = true;
  for (; last - first >= Sums::kBlocks; first += Sums::kBlocks)
    fits &= product_of<Sums, Sums::kBlocks, expand, Groups>(task, first);
  for (; first < last; ++first) fits &= product_of<Sums, 1, expand, Groups>(task, first);
  return fits;
}

template <class Lanes, int Blocks, int Rows>
struct RealSums {
  static constexpr int kBlocks = Blocks, kRows = Rows;
  template <int Together, int Some, bool Full>
  static inline void add(const Task &task, int64_t block, const uint8_t *(&p)[Together], int64_t row) {
    add_up<Lanes, Together, Some, Full>(task, block, p, row);
  }
};

template <class Lanes, Expand expand = nullptr, int Groups = 2, int Blocks = 1, int Rows = Lanes::kRows>
bool product(const Task &task, int64_t first, int64_t last) {
  return product_by<RealSums<Lanes, Blocks, Rows>, expand, Groups>(task, first, last);
}

// Without a vector unit: one value after the other. `T` has the bits of a value. One that is pruned is read too, and
// what was read is dropped: it is the next one that is kept, or lies in the 64 bytes beyond the end.
template <class T>
inline const uint8_t *expand_values(const uint16_t *masks, const uint8_t *values, void *tile) {
  T *out = static_cast<T *>(tile);
  for (int64_t at = 0; at < kOutputs * kColumns; ++at) {
    T kept = masks[at / 16] >> at % 16 & 1, value;
    memcpy(&value, values, sizeof value);
    values += kept * sizeof value;
    out[at] = T(value * kept);
  }
  return values;
}

inline const uint8_t *expand_by_value(int type, const uint16_t *masks, const uint8_t *values, void *tile) {
  if (size_of(type) == 1) return expand_values<uint8_t>(masks, values, tile);
  return size_of(type) == 4 ? expand_values<uint32_t>(masks, values, tile)
                            : expand_values<uint16_t>(masks, values, tile);
}

}  // namespace
