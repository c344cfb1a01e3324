// A path: one way of computing a product, for one kind of CPU. Each stands in a file that is compiled for that CPU.
#pragma once

#include "order.h"

namespace ecoflap {

// A product that is asked for: y = x W' + bias. Rows of x are `padded` long, with zeros behind the last input. Several
// rows that are multiplied together lie pair of columns by pair of columns: those two inputs of each row, then the next.
struct Task {
  Matrix weight;
  const void *x;  // float32, or as the weight where the path says so
  int64_t batch;
  const void *bias;  // or null
  void *y;
};

// Computes one block's outputs for the whole batch; false where the block's values do not end where they should.
using Product = bool (*)(const Task &task, int64_t block);

// Writes the next 32 columns of a block as they would lie if none were pruned; returns where the values after them are.
using Expand = const uint8_t *(*)(int type, const uint16_t *masks, const uint8_t *values, void *tile);

// Writes the next 32 columns of all 16 rows of a block as they are dense, rows `row_bytes` apart; returns as Expand does.
using ToRows = const uint8_t *(*)(int type, const uint16_t *masks, const uint8_t *values, uint8_t *out, int64_t row_bytes);

struct Path {
  const char *name;
  const char *needs;
  bool (*cpu_has)();
  bool reads_bfloat16;   // whether x of a bfloat16 product stays bfloat16
  Product product[3];    // by type; null where the path was not compiled
  int64_t rows[3];       // how many rows of x are multiplied together at most; a power of two
  Expand expand;
  ToRows to_rows;        // or null: expanded, then put one by one
  int64_t batch[3];      // the largest that is faster here than a decoded panel and a dense library
};

// How many rows are multiplied together from `row` on, where at most `most` are.
inline int64_t rows_from(int64_t row, int64_t batch, int64_t most) {
  while (most > batch - row) most /= 2;
  return most;
}

extern const Path kAmx, kAvx512Bf16, kAvx512, kAvx2, kNeon, kPortable;

// The paths, the fastest first.
extern const Path *const kPaths[];
extern const int kPathCount;

// Tasks from 0 to before `count`, each done once, by up to `threads` threads.
void in_parallel(int threads, int64_t count, void (*work)(void *context, int64_t task), void *context);
void run_on(void *gomp_parallel);

bool cpu_has_amx();
bool cpu_has_avx512_bf16();
bool cpu_has_avx512();
bool cpu_has_avx2();
bool cpu_has_neon();

}  // namespace ecoflap
