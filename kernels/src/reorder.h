// Into the kernel's order and back: reorder.cpp.
#pragma once

#include "path.h"

namespace ecoflap {

// Null, or what is wrong. `m` says where to write; its starts, masks and values are written.
const char *write_rows(const Matrix &m, const uint8_t *mask, const void *values);
const char *write_dense(const Matrix &m, const void *dense);

// Writes `rows` rows of a block as they are dense; false where its values do not end where they should.
bool read_block(const Matrix &m, const Path &path, int64_t block, int64_t rows, void *out);

}  // namespace ecoflap
