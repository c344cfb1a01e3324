// The kernel's order: sizes, and what is checked before anything is read. order.h describes it.
#include "order.h"

#include <float.h>
#include <string.h>

#include "int8.h"

namespace ecoflap {

namespace {

constexpr int64_t kMost = int64_t(1) << 46;  // weights: no product of two such sizes overflows 64 bits

int64_t block_count(int64_t outputs) { return rounded(outputs, kOutputs) / kOutputs; }
int64_t starts_bytes(int64_t outputs) { return rounded((block_count(outputs) + 1) * 8, kLine); }

int64_t masks_bytes(int64_t outputs, int64_t inputs) {
  return block_count(outputs) * rounded(inputs, kColumns) * int64_t(sizeof(uint16_t));
}

int64_t per_output_bytes(int type, int64_t outputs, int64_t each) {
  return is_int8(type) ? block_count(outputs) * kOutputs * each : 0;
}

int64_t scales_bytes(int type, int64_t outputs) { return per_output_bytes(type, outputs, sizeof(float)); }
int64_t sums_bytes(int type, int64_t outputs) { return per_output_bytes(type, outputs, sizeof(int64_t)); }

int64_t ones(const uint16_t *masks, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += 4) {
    uint64_t four;
    memcpy(&four, masks + i, sizeof four);
    found += __builtin_popcountll(four);
  }
  return found;
}

bool fits(const Matrix &m, int64_t block) {
  return ones(m.masks_of(block), m.padded) == int64_t(m.starts[block + 1] - m.starts[block]);
}

// A wrong mask keeps at most all weights of its block: only so near the end can it lead out of the values.
bool could_lead_out(const Matrix &m, int64_t block) {
  return int64_t(m.starts[block]) + kOutputs * m.padded > m.kept;
}

const char *starts_problem(const Matrix &m) {
  if (m.starts[0] != 0 || m.starts[m.blocks] != uint64_t(m.kept)) return "its starts do not fit its kept values";
  for (int64_t block = 0; block < m.blocks; ++block)
    if (m.starts[block] > m.starts[block + 1]) return "its starts are not in order";
  for (int64_t block = m.blocks - 1; block >= 0 && could_lead_out(m, block); --block)
    if (!fits(m, block)) return "its masks do not fit its kept values";
  return nullptr;
}

// Whether the sums of a block's outputs are those of its values.
bool adds_up(const Matrix &m, int64_t block) {
  int64_t sums[kOutputs] = {};
  add_up(m, block, kPortable.expand, sums);
  return memcmp(sums, m.sums + block * kOutputs, sizeof sums) == 0;
}

}  // namespace

int64_t packed_bytes(int type, int64_t outputs, int64_t inputs, int64_t kept) {
  if (type < ECOFLAP_FLOAT32 || type >= ECOFLAP_TYPES || outputs < 0 || inputs < 0 || kept < 0) return -1;
  if (outputs > kMost || inputs > kMost || (inputs > 0 && outputs > kMost / inputs)) return -1;
  if (kept > outputs * inputs || (is_int8(type) && inputs > kMostInt8)) return -1;
  int64_t head = int64_t(sizeof(Header)) + starts_bytes(outputs) + masks_bytes(outputs, inputs);
  return head + scales_bytes(type, outputs) + sums_bytes(type, outputs) + rounded(kept * size_of(type), kLine) + kLine;
}

Matrix laid_out(const void *packed, int type, int64_t outputs, int64_t inputs, int64_t kept) {
  const uint8_t *at = static_cast<const uint8_t *>(packed) + sizeof(Header);
  const uint8_t *masks = at + starts_bytes(outputs);
  const uint8_t *scales = masks + masks_bytes(outputs, inputs), *sums = scales + scales_bytes(type, outputs);
  const uint8_t *values = sums + sums_bytes(type, outputs);
  bool full = kept == outputs * inputs && outputs % kOutputs == 0 && inputs % kColumns == 0;
  return {type, outputs, inputs, kept, rounded(inputs, kColumns), block_count(outputs),
          reinterpret_cast<const uint64_t *>(at), reinterpret_cast<const uint16_t *>(masks),
          reinterpret_cast<const float *>(scales), reinterpret_cast<const int64_t *>(sums), values, full};
}

const char *opened(const void *packed, int64_t bytes, Matrix *found) {
  if (packed == nullptr || bytes < int64_t(sizeof(Header))) return "it is too short for a header";
  if (reinterpret_cast<uintptr_t>(packed) % 8 != 0) return "its memory is not aligned to 8 bytes";
  Header header;
  memcpy(&header, packed, sizeof header);
  if (memcmp(header.magic, kMagic, sizeof kMagic) != 0) return "it does not begin as one does";
  if (header.version != kVersion) return "it is of another version";
  if (header.type >= ECOFLAP_TYPES) return "its values are of a type that is not known";
  int64_t expected = packed_bytes(int(header.type), header.outputs, header.inputs, header.kept);
  if (expected < 0 || expected != bytes) return "it has another length than its header says";
  *found = laid_out(packed, int(header.type), header.outputs, header.inputs, header.kept);
  return starts_problem(*found);
}

const char *checked(const Matrix &matrix) {
  for (int64_t block = 0; block < matrix.blocks; ++block)
    if (!fits(matrix, block)) return "its masks do not fit its kept values";
  for (int64_t i = 0; is_int8(matrix.type) && i < matrix.blocks * kOutputs; ++i)
    if (!(matrix.scales[i] >= 0 && matrix.scales[i] <= FLT_MAX)) return "its scales are no finite numbers from 0 on";
  for (int64_t block = 0; is_int8(matrix.type) && block < matrix.blocks; ++block)
    if (!adds_up(matrix, block)) return "its sums are not those of its values";
  return nullptr;
}

}  // namespace ecoflap
