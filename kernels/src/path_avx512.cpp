// AVX-512 with VBMI2 and without bfloat16 products, as Ice Lake servers have it: all is multiplied in float32.
#include "path.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "avx512_lanes.h"

namespace ecoflap {

const Path kAvx512 = {
    "avx512",
    "AVX-512 with VBMI2",
    cpu_has_avx512,
    false,
    {product<Float32>, product<Bfloat16InFloat>, product<Half>},
    {16, 16, 16},
    expand_512,
    to_rows_512,
    {256, 128, 512},
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAvx512 = {"avx512", "AVX-512 with VBMI2", cpu_has_avx512, false, {}, {}, nullptr, nullptr, {}};
}
#endif
