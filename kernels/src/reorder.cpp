// From row order, as files and libraries have weights, into the kernel's order, and back to dense rows.
#include "reorder.h"

#include <string.h>

#include <numeric>
#include <vector>

#include "int8.h"

namespace ecoflap {
namespace {

// `count` bits, at most 64, from a bit on; nothing is read beyond the byte of the last one.
uint64_t bits_from(const uint8_t *bits, int64_t first, int64_t count) {
  const uint8_t *p = bits + first / 8;
  int shift = int(first % 8);
  int64_t bytes = (shift + count + 7) / 8;
  uint64_t word = 0;
  memcpy(&word, p, size_t(bytes < 8 ? bytes : 8));
  word >>= shift;
  if (bytes > 8) word |= uint64_t(p[8]) << (64 - shift);
  return count < 64 ? word & ((uint64_t(1) << count) - 1) : word;
}

int64_t ones(const uint8_t *bits, int64_t first, int64_t count) {
  int64_t found = 0;
  for (int64_t at = 0; at < count; at += 64)
    found += __builtin_popcountll(bits_from(bits, first + at, count - at < 64 ? count - at : 64));
  return found;
}

// How many columns lie output by output.
int together(int type) { return is_int8(type) ? 4 : type == ECOFLAP_BFLOAT16 ? 2 : 1; }

// Sixteen rows of a matrix in row order: where their bits begin, and where the next value of each is.
template <class T>
struct Rows {
  const uint8_t *bits;
  int64_t first_bit, inputs, rows;
  const T *next[kOutputs];
};

uint32_t spread(uint32_t bits) {  // bit i to bit 2 i
  bits = (bits | bits << 8) & 0x00ff00ffu;
  bits = (bits | bits << 4) & 0x0f0f0f0fu;
  bits = (bits | bits << 2) & 0x33333333u;
  return (bits | bits << 1) & 0x55555555u;
}

uint64_t spread_wide(uint64_t bits) {  // bit i to bit 4 i
  uint64_t pairs = spread(uint32_t(bits)), low = spread(uint32_t(pairs & 0xffff)), high = spread(uint32_t(pairs >> 16));
  return low | high << 32;
}

// The masks of 64 columns from the bits of 16 rows.
void across(const uint64_t (&rows)[kOutputs], uint16_t *columns) {
  for (int c = 0; c < 64; ++c) {
    uint32_t mask = 0;
    for (int i = 0; i < kOutputs; ++i) mask |= uint32_t(rows[i] >> c & 1) << i;
    columns[c] = uint16_t(mask);
  }
}

template <class T>
T *take(Rows<T> &from, uint64_t mask, int shift, T *out) {
  for (; mask != 0; mask &= mask - 1) *out++ = *from.next[__builtin_ctzll(mask) >> shift]++;
  return out;
}

// Writes the masks of columns that go together, and their values; returns where they end.
template <class T>
T *write_columns(Rows<T> &from, int type, const uint16_t *columns, uint16_t *masks, T *out) {
  if (together(type) == 4) {
    uint64_t four = 0;
    for (int c = 0; c < 4; ++c) four |= spread_wide(columns[c]) << c;
    memcpy(masks, &four, sizeof four);
    return take(from, four, 2, out);
  }
  for (int k = 0; k < 4; k += 2) {
    bool pairs = together(type) == 2;
    uint32_t two = columns[k] | uint32_t(columns[k + 1]) << 16;
    if (pairs) two = spread(two & 0xffff) | spread(two >> 16) << 1;
    memcpy(masks + k, &two, sizeof two);
    out = pairs ? take(from, two, 1, out) : take(from, two >> 16, 0, take(from, two & 0xffff, 0, out));
  }
  return out;
}

// Writes the masks of a block and its values; returns where they end.
template <class T>
T *write_block(Rows<T> &from, int type, int64_t padded, uint16_t *masks, T *out) {
  for (int64_t c = 0; c < padded; c += 64) {
    uint64_t bits[kOutputs] = {};
    int64_t left = from.inputs - c;
    for (int64_t i = 0; i < from.rows && left > 0; ++i)
      bits[i] = bits_from(from.bits, from.first_bit + i * from.inputs + c, left < 64 ? left : 64);
    uint16_t columns[64];
    across(bits, columns);
    for (int64_t k = 0; k < 64 && c + k < padded; k += 4)
      out = write_columns(from, type, columns + k, masks + c + k, out);
  }
  return out;
}

// Writes a block in whole numbers: its scales and sums too. `kept` values are in `from`, row by row.
template <class T>
const char *write_whole(const Matrix &m, int64_t block, const Rows<T> &from, int64_t kept, uint8_t *out) {
  std::vector<int8_t> whole(size_t(kept) + 1);
  Rows<int8_t> rounded = {from.bits, from.first_bit, from.inputs, from.rows, {}};
  float *scales = const_cast<float *>(m.scales) + block * kOutputs;
  int64_t *sums = const_cast<int64_t *>(m.sums) + block * kOutputs;
  for (int64_t i = from.rows; i < kOutputs; ++i) scales[i] = 0, sums[i] = 0;
  for (int64_t i = 0, done = 0; i < from.rows; ++i) {
    int64_t count = ones(from.bits, from.first_bit + i * from.inputs, from.inputs);
    rounded.next[i] = whole.data() + done;
    if (const char *problem = round_weights(real_type(m.type), from.next[i], count, scales + i, whole.data() + done))
      return problem;
    sums[i] = std::accumulate(rounded.next[i], rounded.next[i] + count, int64_t(0));
    done += count;
  }
  write_block(rounded, m.type, m.padded, const_cast<uint16_t *>(m.masks_of(block)), reinterpret_cast<int8_t *>(out));
  return nullptr;
}

// Writes a block whose values begin after so many others, `done`.
template <class T>
const char *write(const Matrix &m, int64_t block, Rows<T> &from, int64_t kept, int64_t done) {
  const_cast<uint64_t *>(m.starts)[block] = uint64_t(done);
  uint8_t *out = const_cast<uint8_t *>(m.values) + done * size_of(m.type);
  if (is_int8(m.type)) return write_whole(m, block, from, kept, out);
  write_block(from, m.type, m.padded, const_cast<uint16_t *>(m.masks_of(block)), reinterpret_cast<T *>(out));
  return nullptr;
}

int64_t rows_of(const Matrix &m, int64_t block) {
  int64_t left = m.outputs - block * kOutputs;
  return left < kOutputs ? left : kOutputs;
}

template <class T>
const char *pack_rows(const Matrix &m, const uint8_t *mask, const T *values) {
  int64_t done = 0;
  for (int64_t block = 0; block < m.blocks; ++block) {
    int64_t first = block * kOutputs;
    Rows<T> from = {mask, first * m.inputs, m.inputs, rows_of(m, block), {}};
    int64_t kept = 0;
    for (int64_t i = 0; i < from.rows; ++i) {
      from.next[i] = values + done + kept;
      kept += ones(mask, (first + i) * m.inputs, m.inputs);
    }
    if (done + kept > m.kept) return "the mask keeps more weights than there are values";
    if (const char *problem = write(m, block, from, kept, done)) return problem;
    done += kept;
  }
  const_cast<uint64_t *>(m.starts)[m.blocks] = uint64_t(done);
  return done == m.kept ? nullptr : "the mask keeps fewer weights than there are values";
}

// Sixteen dense rows in row order with a bit a weight; returns how many are kept: a zero is none, whatever its sign.
template <class T>
int64_t compress(const T *dense, int64_t count, std::vector<uint8_t> &bits, std::vector<T> &values) {
  memset(bits.data(), 0, bits.size());
  int64_t kept = 0;
  for (int64_t at = 0; at < count; ++at) {
    bool keeps = T(dense[at] << 1) != 0;
    values[size_t(kept)] = dense[at];
    bits[size_t(at / 8)] |= uint8_t(keeps) << at % 8;
    kept += keeps;
  }
  return kept;
}

template <class T>
const char *pack_dense(const Matrix &m, const T *dense) {
  std::vector<uint8_t> bits(size_t(kOutputs * m.inputs / 8 + 1));
  std::vector<T> values(size_t(kOutputs * m.inputs + 1));
  int64_t done = 0;
  for (int64_t block = 0; block < m.blocks; ++block) {
    Rows<T> from = {bits.data(), 0, m.inputs, rows_of(m, block), {}};
    int64_t kept = compress(dense + block * kOutputs * m.inputs, from.rows * m.inputs, bits, values);
    if (done + kept > m.kept) return "the matrix has more weights that are not zero than was said";
    from.next[0] = values.data();
    for (int64_t i = 1; i < from.rows; ++i)
      from.next[i] = from.next[i - 1] + ones(bits.data(), (i - 1) * m.inputs, m.inputs);
    if (const char *problem = write(m, block, from, kept, done)) return problem;
    done += kept;
  }
  const_cast<uint64_t *>(m.starts)[m.blocks] = uint64_t(done);
  return done == m.kept ? nullptr : "the matrix has fewer weights that are not zero than was said";
}

// Puts 32 columns of a block into its rows; `unit` is what lies together: a value, or a pair of bfloat16.
template <class Unit>
void put_tile(const Unit *tile, int64_t units, int64_t rows, uint8_t *out, int64_t row_bytes) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t u = 0; u < units; ++u) memcpy(out + i * row_bytes + u * int64_t(sizeof(Unit)), tile + u * kOutputs + i, sizeof(Unit));
}

// As `put_tile`, for the columns at the end of a row, of which some are no columns of the matrix.
void put_columns(int type, const uint8_t *tile, int64_t columns, int64_t rows, uint8_t *out, int64_t row_bytes) {
  int64_t size = size_of(type);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; ++c) {
      int64_t from = type == ECOFLAP_BFLOAT16 ? c / 2 * 2 * kOutputs + 2 * i + c % 2 : c * kOutputs + i;
      memcpy(out + i * row_bytes + c * size, tile + from * size, size_t(size));
    }
}

void put(int type, const uint8_t *tile, int64_t columns, int64_t rows, uint8_t *out, int64_t row_bytes) {
  if (columns < kColumns)
    put_columns(type, tile, columns, rows, out, row_bytes);
  else if (type == ECOFLAP_FLOAT16)
    put_tile(reinterpret_cast<const uint16_t *>(tile), kColumns, rows, out, row_bytes);
  else
    put_tile(reinterpret_cast<const uint32_t *>(tile), type == ECOFLAP_FLOAT32 ? kColumns : kColumns / 2, rows, out, row_bytes);
}

}  // namespace

const char *write_rows(const Matrix &m, const uint8_t *mask, const void *values) {
  int64_t bits = m.outputs * m.inputs;
  if (bits % 8 != 0 && mask[bits / 8] >> bits % 8 != 0) return "the bits after the mask's last weight are not zero";
  return real_size(m.type) == 4 ? pack_rows(m, mask, static_cast<const uint32_t *>(values))
                                : pack_rows(m, mask, static_cast<const uint16_t *>(values));
}

const char *write_dense(const Matrix &m, const void *dense) {
  return real_size(m.type) == 4 ? pack_dense(m, static_cast<const uint32_t *>(dense))
                                : pack_dense(m, static_cast<const uint16_t *>(dense));
}

bool read_block(const Matrix &m, const Path &path, int64_t block, int64_t rows, void *out) {
  alignas(64) uint8_t tile[kOutputs * kColumns * 4];
  const uint8_t *p = m.values_of(block);
  const uint16_t *masks = m.masks_of(block);
  int64_t size = real_size(m.type), row_bytes = m.inputs * size;
  for (int64_t c = 0; c < m.inputs; c += kColumns) {
    uint8_t *to = static_cast<uint8_t *>(out) + c * size;
    int64_t columns = m.inputs - c < kColumns ? m.inputs - c : kColumns;
    if (is_int8(m.type)) {
      p = path.expand(m.type, masks + c, p, tile);
      put_rounded(m, block, tile, columns, rows, to, row_bytes);
    } else if (path.to_rows != nullptr && rows == kOutputs && columns == kColumns) {
      p = path.to_rows(m.type, masks + c, p, to, row_bytes);
    } else {
      p = path.expand(m.type, masks + c, p, tile);
      put(m.type, tile, columns, rows, to, row_bytes);
    }
  }
  return p == m.values_of(block + 1);
}

}  // namespace ecoflap
