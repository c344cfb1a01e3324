// A path: one way of computing a product, for one kind of CPU. Each stands in a file that is compiled for that CPU.
#pragma once

#include "gram.h"
#include "order.h"

namespace ecoflap {

// A product that is asked for: y = x W' + bias. Rows of x are `padded` long, with zeros behind the last input. Several
// rows that are multiplied together lie pair of columns by pair of columns: those two inputs of each row, then the next.
// With int8 they lie by fours, in whole numbers: int8.h. Where a path multiplies in tiles they lie as tiles.h says.
struct Task {
  Matrix weight;
  const void *x;         // float32, or as the weight where the path says so
  const void *given;     // x as the caller has it, its rows `stride` elements apart
  int64_t stride;
  const double *scales;  // of int8: one a row of x; NaN where something in the row is not finite
  int64_t batch;
  const void *bias;  // or null
  void *y;
  int in_out;  // the type of bias and y
};

// Computes the outputs of blocks from `first` to before `last` for the whole batch; false where one's values do not end where
// they should.
using Product = bool (*)(const Task &task, int64_t first, int64_t last);

// Writes the next 32 columns of a block as they would lie if none were pruned; returns where the values after them are.
using Expand = const uint8_t *(*)(int type, const uint16_t *masks, const uint8_t *values, void *tile);

// Writes the next 32 columns of all 16 rows of a block as they are dense, rows `row_bytes` apart; returns as Expand does.
using ToRows = const uint8_t *(*)(int type, const uint16_t *masks, const uint8_t *values, uint8_t *out, int64_t row_bytes);

// What a path has one of for each: three types, and int8 with x in int16 and in int8.
constexpr int kKinds = 5;
inline int kind_of(int type) { return is_int8(type) ? 2 + type / ECOFLAP_INT8 : type; }

struct Path {
  const char *name;
  const char *needs;
  bool (*cpu_has)();
  bool reads_bfloat16;   // whether x of a bfloat16 product stays bfloat16
  bool reads_planes;     // whether x of an int8 product goes as bytes without sign: int8.h
  Product product[kKinds];  // null where the path was not compiled
  int64_t rows[kKinds];  // how many rows of x are multiplied together at most; a power of two
  Expand expand;
  ToRows to_rows;        // or null: expanded, then put one by one; not for int8
  int64_t batch[kKinds]; // the largest that is faster here than a decoded panel and a dense library
  AddGram add_gram = nullptr;    // null where a dense library's float32 is as fast, or may be
  Product panel[kKinds] = {};    // or null, where nothing is multiplied in tiles
  int64_t tiles_from[kKinds] = {};  // how many rows of x are multiplied in tiles, or more; 0 for none
  int64_t side_by_side = 1;         // how many blocks are multiplied together, where a thread has as many
};

constexpr int64_t kAnyBatch = INT64_MAX;
constexpr int64_t kMostTiled = 1 << 16;  // columns, whose products of two bytes are added up in 32 bits
static_assert(kMostTiled * 255 * 128 <= INT32_MAX, "sums of bytes are whole");

// Memory of this thread that is used again from call to call, aligned to lines; null where there is not enough. What x is
// made to be lies apart from blocks that are put in place, and from sums that are not yet complete.
enum Purpose { kForX, kForBlock, kForSums, kPurposes };
void *scratch(Purpose purpose, int64_t bytes);

// The same for x; where there is not enough, std::bad_alloc is thrown.
void *memory_for_x(int64_t bytes);

// How many rows are multiplied together from `row` on, where at most `most` are.
inline int64_t rows_from(int64_t row, int64_t batch, int64_t most) {
  while (most > batch - row) most /= 2;
  return most;
}

extern const Path kAmx, kAvx512Wide, kAvx512Bf16, kAvx512, kAvx2, kNeon, kPortable;

// The paths, the fastest first.
extern const Path *const kPaths[];
extern const int kPathCount;

// Tasks from 0 to before `count`, each done once, by up to `threads` threads.
void in_parallel(int threads, int64_t count, void (*work)(void *context, int64_t task), void *context);
void run_on(void *gomp_parallel);

bool cpu_has_amx();
bool cpu_has_avx512_wide();
bool cpu_has_avx512_bf16();
bool cpu_has_avx512();
bool cpu_has_avx2();
bool cpu_has_neon();

}  // namespace ecoflap
