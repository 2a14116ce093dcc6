#pragma once
#include <cstdint>

// Raises glibc's mmap and trim thresholds so that freed memory stays in the process. False where there is no glibc.
bool tune_malloc();

// Asks the kernel for huge pages over [address, address + bytes), inner whole pages only. False if refused.
bool advise_huge_pages(uintptr_t address, int64_t bytes);
