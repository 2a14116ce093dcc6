#include "memory.h"

#include <sys/mman.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

bool tune_malloc() {
#ifdef __GLIBC__
    constexpr int kMostThatMalloptTakes = 0x7fffffff;
    // -1 becomes the largest size: never trim.
    return mallopt(M_MMAP_THRESHOLD, kMostThatMalloptTakes) && mallopt(M_TRIM_THRESHOLD, -1) &&
           mallopt(M_TOP_PAD, 64 << 20);
#else
    return false;
#endif
}

bool advise_huge_pages(uintptr_t address, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kPage = 2 << 20;
    const uintptr_t first = (address + kPage - 1) / kPage * kPage;
    const uintptr_t last = (address + static_cast<uintptr_t>(bytes)) / kPage * kPage;
    return last > first && madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE) == 0;
#else
    (void)address, (void)bytes;
    return false;
#endif
}
