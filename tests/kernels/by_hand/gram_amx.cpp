// Gram matrices by AMX, with tiles by hand.
#include "tiles_by_hand.h"

#include "../../../kernels/src/gram_amx.cpp"
