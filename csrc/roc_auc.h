// The exact area under the ROC curve: (sum over pairs (positive, negative) of
// [s+ > s-] + [s+ == s-] / 2) / pairs, which is the rank formula with mean
// ranks on ties.
//
//   scores float32 [n], any finite or infinite values; -0 equals 0      labels
//   uint8 [n], 0 or 1
// Counts are 64-bit integers, so the only rounding is the last division's and
// the number of threads doesn't matter. Errors (ValueError): a NaN score, a
// label other than 0 and 1, no positives or no negatives, 2 * pairs >= 2^63.
//
// Reads 10 bytes a score (two passes), writes and reads back 2; needs 2 extra
// bytes a score, and 2 MiB a thread for at most 16 threads.
#pragma once
#include <cstdint>

double roc_auc(uintptr_t scores, uintptr_t labels, int64_t n);
