// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), the checksum of TFRecord files.
#pragma once
#include <cstdint>

// The checksum of `bytes` bytes at `data`. Reads each byte once; the processor's own instruction from AVX2
// on, else eight table look-ups for 8 bytes.
uint32_t crc32c(uintptr_t data, int64_t bytes);
