#include "criteo.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace {

constexpr int kFirstTable = 1 + kCriteoIntegers;

// log(y) for a float32 y >= 1: y = m * 2^e with m in [1/sqrt 2, sqrt 2), and log m = 2 atanh(s), s = (m-1)/(m+1).
// |s| < 0.1716, so the series cut after s^9 is wrong by less than 2e-9 of the value: under the rounding of float32.
inline float log_of(float y) {
    constexpr float kLn2High = 0.693145751953125f;  // ln 2 in 16 bits, so that e * kLn2High is exact
    constexpr float kLn2Low = 1.42860677e-6f;
    constexpr int32_t kSqrtHalfBits = 0x3f3504f3;
    int32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    const int32_t e = (bits - kSqrtHalfBits) >> 23;
    bits -= e << 23;
    float m;
    std::memcpy(&m, &bits, sizeof m);
    const float s = (m - 1.0f) / (m + 1.0f);
    const float z = s * s;
    const float tail = z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9))));
    const float exponent = static_cast<float>(e);
    return exponent * kLn2High + (2.0f * s + (2.0f * s * tail + exponent * kLn2Low));
}

bool bad_label(int32_t label) { return static_cast<uint32_t>(label) > 1; }

CriteoFault first_fault(const int32_t* row, int64_t r, bool own, const int32_t* table_rows, const int32_t* tables,
                        int64_t n_tables) {
    if (own && bad_label(row[0])) return {r, 0, row[0]};
    for (int c = 1; own && c < kFirstTable; ++c)
        if (row[c] < 0) return {r, c, row[c]};
    for (int64_t t = 0; t < n_tables; ++t) {
        const int32_t id = row[kFirstTable + tables[t]];
        if (id < 0 || id >= table_rows[tables[t]]) return {r, kFirstTable + tables[t], id};
    }
    return {-1, 0, 0};
}

// Digits of a decimal int32 in [begin, end), which isn't empty. False if it is none.
bool parse_integer(const char* begin, const char* end, int32_t* value) {
    const bool negative = *begin == '-';
    const char* p = begin + negative;
    if (p == end) return false;
    int64_t sum = 0;
    for (; p < end; ++p) {
        const unsigned digit = static_cast<unsigned char>(*p) - unsigned{'0'};
        if (digit > 9) return false;
        sum = sum * 10 + digit;
        if (sum > int64_t{INT32_MAX} + negative) return false;
    }
    *value = static_cast<int32_t>(negative ? -sum : sum);
    return true;
}

constexpr std::array<int8_t, 256> hex_digits() {
    std::array<int8_t, 256> table{};
    for (int i = 0; i < 256; ++i) table[i] = -1;
    for (int i = 0; i < 10; ++i) table['0' + i] = static_cast<int8_t>(i);
    for (int i = 0; i < 6; ++i) table['a' + i] = table['A' + i] = static_cast<int8_t>(10 + i);
    return table;
}
constexpr std::array<int8_t, 256> kHexDigit = hex_digits();

bool parse_hash(const char* begin, const char* end, uint32_t* value) {
    if (end - begin > 8) return false;
    uint32_t sum = 0;
    int any_negative = 0;
    for (const char* p = begin; p < end; ++p) {
        const int digit = kHexDigit[static_cast<unsigned char>(*p)];
        any_negative |= digit;
        sum = sum << 4 | static_cast<uint32_t>(digit & 15);
    }
    *value = sum;
    return any_negative >= 0;
}

}  // namespace

CriteoFault criteo_decode(uintptr_t raw, int64_t valid, int64_t batch, int64_t first, int64_t last,
                          uintptr_t table_rows_, uintptr_t tables_, int64_t n_tables, uintptr_t dense_,
                          uintptr_t labels_, uintptr_t ids_) {
    const auto* rows = reinterpret_cast<const int32_t*>(raw);
    const auto* table_rows = reinterpret_cast<const int32_t*>(table_rows_);
    const auto* tables = reinterpret_cast<const int32_t*>(tables_);
    auto* dense = reinterpret_cast<float*>(dense_);
    auto* labels = reinterpret_cast<float*>(labels_);
    auto* ids = reinterpret_cast<int32_t*>(ids_);
    // The usual case, a run of neighbouring tables, needs no gather and so becomes whole vectors.
    bool neighbours = true;
    for (int64_t t = 1; t < n_tables; ++t) neighbours &= tables[t] == tables[t - 1] + 1;
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t r = std::min(b, valid - 1);
        const int32_t* row = rows + r * kCriteoColumns;
        const bool own = b >= first && b < last;
        int32_t* out = ids + b * n_tables;
        uint32_t bad = 0;
        if (neighbours && n_tables > 0) {
            const int32_t* cells = row + kFirstTable + tables[0];
            const int32_t* limits = table_rows + tables[0];
#pragma omp simd reduction(| : bad)
            for (int64_t t = 0; t < n_tables; ++t) {
                bad |= static_cast<uint32_t>(cells[t]) >= static_cast<uint32_t>(limits[t]);
                out[t] = cells[t];
            }
        } else {
            for (int64_t t = 0; t < n_tables; ++t) {
                out[t] = row[kFirstTable + tables[t]];
                bad |= static_cast<uint32_t>(out[t]) >= static_cast<uint32_t>(table_rows[tables[t]]);
            }
        }
        if (own) {
            // 16 lanes, the last three of which fall on categories: whole vectors, and only 13 are kept.
            float logs[16];
            int32_t signs = 0;
#pragma omp simd
            for (int c = 0; c < 16; ++c) logs[c] = log_of(static_cast<float>(row[1 + c]) + 1.0f);
            for (int c = 0; c < kCriteoIntegers; ++c) signs |= row[1 + c];
            std::memcpy(dense + (b - first) * kCriteoIntegers, logs, kCriteoIntegers * sizeof(float));
            labels[b - first] = static_cast<float>(row[0]);
            bad |= signs < 0 || bad_label(row[0]);
        }
        if (bad) return first_fault(row, r, own, table_rows, tables, n_tables);
    }
    return {-1, 0, 0};
}

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> criteo_parse(uintptr_t text_, int64_t bytes,
                                                                              int64_t max_index_range, uintptr_t rows_,
                                                                              int64_t capacity) {
    const auto* text = reinterpret_cast<const char*>(text_);
    const char* const stop = text + bytes;
    const auto range = static_cast<uint32_t>(max_index_range);
    auto* row = reinterpret_cast<int32_t*>(rows_);
    int64_t written = 0, negatives = 0;
    const char* p = text;
    for (; p < stop && written < capacity; ++written, row += kCriteoColumns) {
        const char* const line = p;
        CriteoTextFault fault = kNone;
        int64_t fault_column = 0, fault_begin = 0, fault_end = 0;
        int column = 0;
        for (bool more = true; more; ++column) {
            const char* const begin = p;
            while (*p != '\t' && *p != '\n') ++p;
            more = *p == '\t';
            // A line may end in "\r\n".
            const char* const end = !more && p > begin && p[-1] == '\r' ? p - 1 : p;
            ++p;
            if (fault != kNone || column >= kCriteoColumns) continue;  // still counts the fields of this line
            if (column >= kFirstTable) {
                uint32_t hash = 0;
                if (!parse_hash(begin, end, &hash)) fault = kHash;
                row[column] = static_cast<int32_t>(hash % range);
            } else {
                int32_t value = 0;
                if ((column == 0 || begin < end) && (begin == end || !parse_integer(begin, end, &value)))
                    fault = column == 0 ? kLabel : kInteger;
                if (column == 0 && bad_label(value)) fault = kLabel;
                negatives += value < 0;
                row[column] = std::max(value, 0);
            }
            if (fault != kNone) {
                fault_column = column;
                fault_begin = begin - text;
                fault_end = end - text;
            }
        }
        // The wrong number of fields explains any fault within the line.
        if (column != kCriteoColumns) return {written, negatives, kFieldCount, column, line - text, p - 1 - text};
        if (fault != kNone) return {written, negatives, fault, fault_column, fault_begin, fault_end};
    }
    return {written, negatives, kNone, 0, p - text, p - text};
}

void criteo_index(uintptr_t rows_, int64_t n, uintptr_t slots_, uintptr_t counts_, uintptr_t fresh_) {
    auto* rows = reinterpret_cast<int32_t*>(rows_);
    const auto* slots = reinterpret_cast<const int64_t*>(slots_);
    auto* counts = reinterpret_cast<int64_t*>(counts_);
    // A slot is a cache miss in the large tables; this many are asked for ahead.
    constexpr int64_t kAhead = 16;
    for (int table = 0; table < kCriteoTables; ++table) {
        auto* slot = reinterpret_cast<int32_t*>(slots[table]);
        auto* fresh = reinterpret_cast<int32_t*>(fresh_) + table * n;
        int32_t* cell = rows + kFirstTable + table;
        for (int64_t r = 0; r < n; ++r, cell += kCriteoColumns) {
            if (r + kAhead < n) __builtin_prefetch(slot + cell[kAhead * kCriteoColumns], 1);
            int32_t& index = slot[*cell];
            if (index == 0) {
                *fresh++ = *cell;
                index = static_cast<int32_t>(++counts[table]);
            }
            *cell = index - 1;
        }
    }
}

void criteo_audit(uintptr_t rows_, int64_t n, uintptr_t minima_, uintptr_t maxima_, uintptr_t sums_) {
    const auto* row = reinterpret_cast<const int32_t*>(rows_);
    auto* minima = reinterpret_cast<int64_t*>(minima_);
    auto* maxima = reinterpret_cast<int64_t*>(maxima_);
    auto* sums = reinterpret_cast<int64_t*>(sums_);
    for (int64_t r = 0; r < n; ++r, row += kCriteoColumns) {
        for (int c = 0; c < kCriteoColumns; ++c) {
            const int64_t value = row[c];
            minima[c] = std::min(minima[c], value);
            maxima[c] = std::max(maxima[c], value);
            sums[c] += value;
        }
    }
}
