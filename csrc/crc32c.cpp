#include "crc32c.h"

#include <array>
#include <cstring>

#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

namespace {

// table[k][b] is what byte b contributes when k more bytes follow it in the same step ("slicing by eight").
constexpr std::array<std::array<uint32_t, 256>, 8> make_table() {
    std::array<std::array<uint32_t, 256>, 8> table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0u);
        table[0][byte] = crc;
    }
    for (int k = 1; k < 8; ++k)
        for (uint32_t byte = 0; byte < 256; ++byte) {
            const uint32_t before = table[k - 1][byte];
            table[k][byte] = (before >> 8) ^ table[0][before & 0xff];
        }
    return table;
}

constexpr auto table = make_table();

}  // namespace

uint32_t crc32c(uintptr_t data, int64_t bytes) {
    const auto* p = reinterpret_cast<const unsigned char*>(data);
    uint32_t crc = 0xffffffffu;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        std::memcpy(&word, p, 8);  // little-endian, as x86-64 and AArch64 are
#ifdef __SSE4_2__
        crc = static_cast<uint32_t>(_mm_crc32_u64(crc, word));
#else
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; ++k) crc ^= table[7 - k][(word >> (8 * k)) & 0xff];
#endif
    }
    for (; bytes > 0; --bytes, ++p) crc = (crc >> 8) ^ table[0][(crc ^ *p) & 0xff];
    return ~crc;
}
