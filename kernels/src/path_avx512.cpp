// AVX-512 with VBMI2 and without bfloat16 products, as Ice Lake servers have it: all is multiplied in float32.
#include "path.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "avx512_lanes.h"

namespace ecoflap {

const Path kAvx512 = {
    "avx512",
    "AVX-512 with VBMI2 and VNNI",
    cpu_has_avx512,
    false,
    true,
    {product<Float32, expand_512>, product<Bfloat16InFloat, expand_512>, product<Half, expand_512>, whole_product<Int8<2>, expand_512>, whole_product<Int8<1>, expand_512>},
    {16, 16, 16, Int8<2>::kRows, Int8<1>::kRows},
    expand_512,
    to_rows_512,
    {256, 128, 512, kAnyBatch, kAnyBatch},
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAvx512 = {"avx512", "AVX-512 with VBMI2 and VNNI", cpu_has_avx512, false, true, {}, {}, nullptr, nullptr, {}};
}
#endif
