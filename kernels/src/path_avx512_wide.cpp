// AVX-512 with BF16 on CPUs that multiply 512 bits in one step, as Zen 5 does; Zen 4 takes two. They have AVX-VNNI as well, by
// which they are known. An addition takes half as long there, and what is loaded of x bounds it: so many blocks go side by
// side as there are registers for, and share that. Values are taken out of the packed ones for each group of rows: put in
// place first, 16 to 128 rows took 1.1 to 2.1 times as long on Zen 5.
#include "path.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__) && defined(__AVX512DQ__)
#include "avx512_lanes.h"

namespace ecoflap {
namespace {

// Of three blocks and eight rows, sums take 24 registers.
template <class Lanes>
constexpr Product kOfReals = product<Lanes, nullptr, 0, 3, 8>;

// In int8 memory is read faster from one block where few rows are multiplied, `kAlone` at most. To `kByThrees` rows three
// blocks were faster on Zen 5, and above that two.
template <class Lanes, int Rows, int kAlone, int kByThrees>
bool of_wholes(const Task &task, int64_t first, int64_t last) {
  if (task.batch <= kAlone) return whole_product<Lanes, nullptr, 0, 1, Rows>(task, first, last);
  if (task.batch <= kByThrees) return whole_product<Lanes, nullptr, 0, 3, Rows>(task, first, last);
  return whole_product<Lanes, nullptr, 0, 2, Rows>(task, first, last);
}

}  // namespace

const Path kAvx512Wide = {
    "avx512_wide",
    "AVX-512 with VBMI2, VNNI and BF16, and AVX-VNNI",
    cpu_has_avx512_wide,
    true,
    true,
    {kOfReals<Float32>, kOfReals<Bfloat16>, kOfReals<Half>, of_wholes<Int8<2>, 4, 1, 3>, of_wholes<Int8<1>, 8, 2, 4>},
    {8, 8, 8, 4, 8},
    expand_512,
    to_rows_512,
    {kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch},
    add_gram_avx512_bf16,
    {},
    {},
    3,
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAvx512Wide = {"avx512_wide", "AVX-512 with VBMI2, VNNI and BF16, and AVX-VNNI", cpu_has_avx512_wide, true, true, {}, {}, nullptr, nullptr, {}};
}
#endif
