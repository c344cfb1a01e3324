// The AMX path with tiles by hand.
#include "tiles_by_hand.h"

#define cpu_has_amx cpu_has_tiles_by_hand

#include "../../../kernels/src/path_amx.cpp"

namespace ecoflap {
bool cpu_has_tiles_by_hand() { return cpu_has_avx512_bf16(); }
}  // namespace ecoflap
