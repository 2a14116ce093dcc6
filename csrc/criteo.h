// The benchmark's click log: its text (Criteo's TSV) and its rows of 40 little-endian int32, 160 bytes:
// label, 13 integers (raw, >= 0), 26 category ids. Addresses arrive as integers; all arrays are contiguous.
// None of these functions starts threads: they run beside the training step, in a prefetch thread.
#pragma once
#include <cstdint>
#include <tuple>

constexpr int kCriteoIntegers = 13;
constexpr int kCriteoTables = 26;
constexpr int kCriteoColumns = 1 + kCriteoIntegers + kCriteoTables;

// (row within the call, column 0..39, value); row is -1 where there is no fault.
using CriteoFault = std::tuple<int64_t, int64_t, int64_t>;

// Rows of the file -> what a training step reads.
//   raw         int32 [valid, 40], valid >= 1
//   batch       rows of the global batch; rows from `valid` on repeat the last valid row (padding)
//   first, last this rank's rows of the batch: dense and labels hold these only
//   table_rows  int32 [26]: ids of table t lie in [0, table_rows[t])
//   tables      int32 [n_tables]: the tables that this rank owns, each 0..25
//   dense       f32 [last-first, 13] = log(x+1), within 2 ulp       labels  f32 [last-first]
//   ids         int32 [batch, n_tables]
// Returns the first fault in row order among what it reads: a label other than 0 and 1, a negative integer, an id
// outside its table. The outputs are then incomplete.
CriteoFault criteo_decode(uintptr_t raw, int64_t valid, int64_t batch, int64_t first, int64_t last,
                          uintptr_t table_rows, uintptr_t tables, int64_t n_tables, uintptr_t dense, uintptr_t labels,
                          uintptr_t ids);

// What is wrong with a line of text.
enum CriteoTextFault : int64_t {
    kNone = 0,
    kFieldCount = 1,  // not 40 fields; `column` is then the number of fields found
    kLabel = 2,       // not 0 or 1
    kInteger = 3,     // not a decimal int32
    kHash = 4,        // not 1 to 8 hexadecimal digits
};

// Whole lines of text (the last byte is '\n') -> rows. Empty integers and hashes become 0, negative integers become 0,
// hashes are taken modulo max_index_range (1 .. 2^31-1).
//   rows  int32 [capacity, 40]; stops when they are full
// Returns (rows written, negative integers met, fault, column, begin, end): begin and end are the byte range of the
// faulty field, or of the whole line for kFieldCount. The faulty line is the one after the rows written.
std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> criteo_parse(uintptr_t text, int64_t bytes,
                                                                              int64_t max_index_range, uintptr_t rows,
                                                                              int64_t capacity);

// Replaces the category values of `rows` [n, 40] by indices in the order of first appearance, column by column.
//   slots  int64 [26]: address of an int32 array of max_index_range entries for each column; 0 = not seen yet,
//          otherwise index + 1
//   counts int64 [26]: distinct values seen so far; updated
//   fresh  int32 [26, n]: the values seen for the first time in this call, in order; counts minus its old content
//          says how many
void criteo_index(uintptr_t rows, int64_t n, uintptr_t slots, uintptr_t counts, uintptr_t fresh);

// Per column of `rows` [n, 40]: smallest and largest value and exact sum, folded into int64 [40] each.
void criteo_audit(uintptr_t rows, int64_t n, uintptr_t minima, uintptr_t maxima, uintptr_t sums);
