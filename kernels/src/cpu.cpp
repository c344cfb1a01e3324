// What this CPU has, and its operating system lets programs use: CPUID and XGETBV on x86; on Linux AMX is asked for.
#include "path.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ecoflap {
namespace {

#if defined(__x86_64__)
struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r = {};
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(uint32_t value, int at) { return value >> at & 1; }

// Which registers the operating system saves, one bit for each kind.
uint32_t saved() {
  if (!bit(cpuid(1, 0).c, 27)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool saves(uint32_t kinds) { return (saved() & kinds) == kinds; }

bool has_avx2() {
  Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  return saves(0x6) && bit(one.c, 12) && bit(one.c, 23) && bit(one.c, 29) && bit(seven.b, 5);
}

bool has_avx512() {
  Registers seven = cpuid(7, 0);
  bool basic = bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
  return has_avx2() && saves(0xe6) && basic && bit(seven.c, 6) && bit(seven.c, 11);
}

bool has_avx512_bf16() { return has_avx512() && bit(cpuid(7, 1).a, 5); }

bool has_avx512_wide() { return has_avx512_bf16() && bit(cpuid(7, 1).a, 4); }

// Linux gives a process the tiles' registers only when it asks; some containers refuse.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kAskForRegisters = 0x1023, kTiles = 18;
  return syscall(SYS_arch_prctl, kAskForRegisters, kTiles) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  Registers seven = cpuid(7, 0);
  return has_avx512_bf16() && bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25) && saves(0x600e6) && may_use_tiles();
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_avx512_wide() { return false; }
bool has_amx() { return false; }
#endif

}  // namespace

bool cpu_has_amx() {
  static const bool has = has_amx();
  return has;
}

bool cpu_has_avx512_bf16() {
  static const bool has = has_avx512_bf16();
  return has;
}

bool cpu_has_avx512_wide() {
  static const bool has = has_avx512_wide();
  return has;
}

bool cpu_has_avx512() {
  static const bool has = has_avx512();
  return has;
}

bool cpu_has_avx2() {
  static const bool has = has_avx2();
  return has;
}

bool cpu_has_neon() {
#if defined(__aarch64__)
  return true;
#else
  return false;
#endif
}

}  // namespace ecoflap
