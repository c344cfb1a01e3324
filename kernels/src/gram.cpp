// Puts tokens into pairs, and gives the panels of a Gram matrix out to threads.
#include "gram.h"

#include "path.h"

namespace ecoflap {
namespace {

struct Adding {
  Gram gram;
  AddPanel add;

  static void one(void *context, int64_t panel) {
    const Adding &all = *static_cast<const Adding *>(context);
    all.add(all.gram, panel);
  }
};

// Of the last pair the second token may be none, and of the last panel features: they are zeros.
void put_panel(const uint16_t *x, int64_t tokens, int64_t width, int64_t stride, uint32_t *to) {
  for (int64_t token = 0; token < tokens; token += 2, to += kPanel) {
    const uint16_t *first = x + token * stride, *second = token + 1 < tokens ? first + stride : nullptr;
    for (int64_t k = 0; k < kPanel; ++k)
      to[k] = k >= width ? 0 : second == nullptr ? first[k] : first[k] | uint32_t(second[k]) << 16;
  }
}

}  // namespace

void add_gram(AddPanel add, const uint16_t *x, int64_t tokens, int64_t features, int64_t stride, float *sums, int threads) {
  int64_t panels = rounded(features, kPanel) / kPanel, pairs = rounded(tokens, 2) / 2;
  uint32_t *to = static_cast<uint32_t *>(memory_for_x(panels * pairs * kPanel * int64_t(sizeof(uint32_t))));
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t first = panel * kPanel, width = features - first < kPanel ? features - first : kPanel;
    put_panel(x + first, tokens, width, stride, to + panel * pairs * kPanel);
  }
  Adding all{{to, pairs, features, sums}, add};
  in_parallel(threads, panels, Adding::one, &all);  // the first is the longest
}

}  // namespace ecoflap
