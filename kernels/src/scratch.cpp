// Memory that a thread uses again from call to call.
#include <stdlib.h>

#include <new>

#include "path.h"

namespace ecoflap {
namespace {

struct Block {
  void *memory = nullptr;
  int64_t bytes = 0;

  ~Block() { free(memory); }

  void *of_size(int64_t wanted) {
    if (wanted < kLine) wanted = kLine;  // for nothing there is no memory, and that is no error
    if (bytes >= wanted) return memory;
    free(memory);
    bytes = 0;
    memory = nullptr;
    if (posix_memalign(&memory, size_t(kLine), size_t(wanted)) != 0) return memory = nullptr;
    bytes = wanted;
    return memory;
  }
};

}  // namespace

void *scratch(Purpose purpose, int64_t bytes) {
  thread_local Block blocks[kPurposes];
  return blocks[purpose].of_size(bytes);
}

void *memory_for_x(int64_t bytes) {
  void *memory = scratch(kForX, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace ecoflap
