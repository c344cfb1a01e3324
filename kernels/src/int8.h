// int8 in whole numbers: int8.cpp.
//
// A row's scale is its largest absolute value over the largest whole number, and its numbers are the nearest whole
// multiples of that, ties to even. Weights are whole numbers to 127; x to 32767, or to 127 where the type says so.
//
// x lies by fours of columns: those four inputs of each row that is multiplied together, then the next four. Most paths
// read them as int16. vpdpbusd takes bytes without sign on one side, and weights have signs; so for it x goes in planes:
// x + 32768 as its four high bytes, then its four low ones, or x + 128 as four bytes. What was added, times the sum of the
// weights, is taken off at the end. Paths that multiply in tiles have the planes there: tiles.h.
#pragma once

#include "path.h"

namespace ecoflap {

// Rounds the values of one row; null, or what is wrong.
const char *round_weights(int type, const void *values, int64_t count, float *scale, int8_t *out);

// Adds up the whole numbers of each of a block's outputs, whose masks fit its values.
void add_up(const Matrix &m, int64_t block, Expand expand, int64_t *sums);

// Memory that rounding x takes.
int64_t rounded_bytes(const Path &path, const Matrix &w, int64_t batch);

// Rounds all rows of x into `memory`, which is aligned to lines; task.x and task.scales are there then.
void round_rows(Task *task, const Path &path, void *memory, int threads);

// Whether every row of x was rounded, or is float as it is.
bool all_finite(const Task &task);

// Writes one block's outputs for rows of x that hold an infinity or a NaN, as a product in float has them.
void put_not_finite(const Task &task, int64_t block);

// Puts 32 columns of a block, by fours as they were expanded, into its rows as the type that they stand for.
void put_rounded(const Matrix &m, int64_t block, const uint8_t *tile, int64_t columns, int64_t rows, uint8_t *out,
                 int64_t row_bytes);

}  // namespace ecoflap
