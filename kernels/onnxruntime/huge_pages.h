// Puts what is multiplied into huge pages. What onnxruntime reads a file into lies in pages of 4 KB, and where each weight
// is read once for a token, finding the next page takes a tenth to a fifth of the time.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ecoflap {

// Asks the system to put the bytes together in pages of 2 MB, also those whose pages they share with others: nothing
// moves for who reads or writes there. Linux can since 6.1, of memory and not of most files; elsewhere pages stay small.
inline void put_into_huge_pages(const void *from, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers do not name
  uintptr_t first = reinterpret_cast<uintptr_t>(from) / kHugePage * kHugePage;
  uintptr_t end = reinterpret_cast<uintptr_t>(from) + bytes;
  // One by one: a page at the edge may be mapped in part, and is refused then.
  for (uintptr_t page = first; page < end; page += kHugePage)
    madvise(reinterpret_cast<void *>(page), kHugePage, kCollapse);
#else
  (void)from, (void)bytes;
#endif
}

}  // namespace ecoflap
