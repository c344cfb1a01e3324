// AVX-512 with VBMI2 and BF16, as Zen 4 and Sapphire Rapids have it: vdpbf16ps multiplies pairs of bfloat16, and adds
// them up in float32. Other types go as on any AVX-512.
#include "path.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__) && defined(__AVX512DQ__)
#include "avx512_lanes.h"

namespace ecoflap {
const Path kAvx512Bf16 = {
    "avx512_bf16",
    "AVX-512 with VBMI2, VNNI and BF16",
    cpu_has_avx512_bf16,
    true,
    true,
    {product<Float32, expand_512>, product<Bfloat16, expand_512>, product<Half, expand_512>, whole_product<Int8<2>, expand_512>, whole_product<Int8<1>, expand_512>},
    {16, 16, 16, Int8<2>::kRows, Int8<1>::kRows},
    expand_512,
    to_rows_512,
    {kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch, kAnyBatch},
    add_gram_avx512_bf16,
};

}  // namespace ecoflap
#else
namespace ecoflap {
const Path kAvx512Bf16 = {"avx512_bf16", "AVX-512 with VBMI2, VNNI and BF16", cpu_has_avx512_bf16, true, true, {}, {}, nullptr, nullptr, {}};
}
#endif
