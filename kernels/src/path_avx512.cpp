// AVX-512 with VBMI2 and without bfloat16 products, as Ice Lake servers have it: all is multiplied in float32.
#include "path.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "avx512_lanes.h"

namespace ecoflap {
namespace {

// Two blocks side by side: what is broadcast of x serves both, which halves the loads of a multiplication, and memory is read
// in two streams. Of 8 rows, or 4 in two planes, that takes 16 registers of sums. Values are taken out of the packed ones for
// each such group of rows: put in place first, two blocks of 8 to 64 rows were no faster on Ice Lake.
constexpr int kBlocks = 2;
template <class Lanes, int Rows>
constexpr Product kOfReals = product<Lanes, nullptr, 0, kBlocks, Rows>;
template <class Lanes, int Rows>
constexpr Product kOfWholes = whole_product<Lanes, nullptr, 0, kBlocks, Rows>;

}  // namespace

const Path kAvx512 = {
    "avx512",
    "AVX-512 with VBMI2 and VNNI",
    cpu_has_avx512,
    false,
    true,
    {kOfReals<Float32, 8>, kOfReals<Bfloat16InFloat, 8>, kOfReals<Half, 8>, kOfWholes<Int8<2>, 4>, kOfWholes<Int8<1>, 8>},
    {8, 8, 8, 4, 8},
    expand_512,
    to_rows_512,
    {256, kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch},  // torch has no fast product of 16 bits without AVX512_BF16 or FP16
    nullptr,
    {},
    {},
    kBlocks,
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAvx512 = {"avx512", "AVX-512 with VBMI2 and VNNI", cpu_has_avx512, false, true, {}, {}, nullptr, nullptr, {}};
}
#endif
