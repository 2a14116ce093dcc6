// Table-batched embedding bags with sum pooling, and their fused sparse updates.
//
// T tables of row length D lie in one stacked buffer: table t owns rows row_offsets[t] .. row_offsets[t + 1].
//   weight      float32 [row_offsets[T], D]
//   row_offsets int64   [T + 1], non-decreasing
//   ids         int32 or int64 (ids_64): table-local rows. One-hot: [B, T]. Multi-hot: flat [bag_offsets[B * T]]
//   bag_offsets int64   [B * T + 1], first 0, non-decreasing; address 0 = one-hot. Bag (b, t) is number b * T + t
//   out, dout   float32 [B, T, D]
//   lr, grad_scale, found_inf  one float32 each; grad_scale may be absent (1), found_inf too (never); a found_inf
//               other than 0 skips the update
// All contiguous; an id may occur any number of times. An empty bag pools to 0 and updates nothing.
//
// Errors: an id outside its table is an IndexError that names table, sample and id; bag_offsets out of order are a
// ValueError. The updates check everything before they write; the forward may have written part of `out`.
//
// Each row has one owner that takes its occurrences in sample order, so the bits don't depend on the number of threads.
// Adagrad sums a row's occurrences first. So does SGD where a table's rows occur often (8 times a row or more, on
// average); elsewhere it adds each occurrence to the row, which rounds once an occurrence, as torch's sparse SGD does.
//
// With N ids, must move: forward 4 D (N + B T) + N ids; update, with U distinct rows, 4 D (2 U + B T) + N ids (the
// Adagrad state adds 8 U). Flops: forward D N adds; SGD D (N + 2 U); Adagrad D (N + 4 U).
#pragma once
#include <cstdint>

// Writes out[b, t] = sum of the rows of bag (b, t).
void embedding_bag_fwd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                       uintptr_t out, int64_t B, int64_t T, int64_t D);

// weight[row] -= lr * grad_scale * (sum of dout[b, t] over the row's occurrences)
void embedding_bag_bwd_sgd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                           uintptr_t dout, uintptr_t lr, uintptr_t grad_scale, uintptr_t found_inf, int64_t B,
                           int64_t T, int64_t D);

// g = grad_scale * (sum as above);  state[row] += mean(g^2);  weight[row] -= lr / (sqrt(state[row]) + eps) * g
// state: float32 [row_offsets[T]], one update for each distinct row of the batch.
void embedding_bag_bwd_rowwise_adagrad(uintptr_t weight, uintptr_t state, uintptr_t row_offsets, uintptr_t ids,
                                       bool ids_64, uintptr_t bag_offsets, uintptr_t dout, uintptr_t lr, double eps,
                                       uintptr_t grad_scale, uintptr_t found_inf, int64_t B, int64_t T, int64_t D);

// On CUDA. Arguments as above, on the device, with
//   N, rows     ids and rows of `weight` (the host reads neither offsets nor ids)
//   errors      int64 [3], zeros before the first call: a bad id becomes (1, bag, id), bag_offsets out of order become
//               (2, bag, its end). The first that is seen stays. Bad ids count as absent; nothing waits for the device
//   stream      a CUDA stream
// B T is below 2^31. Updates check all ids before they write, and write nothing while errors[0] isn't 0.
namespace cuda {

void embedding_bag_fwd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                       uintptr_t out, int64_t B, int64_t T, int64_t D, int64_t N, int64_t rows, uintptr_t errors,
                       uintptr_t stream);

// Adds to the rows atomically, in no fixed order: the bits differ from run to run.
void embedding_bag_bwd_sgd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                           uintptr_t dout, uintptr_t lr, uintptr_t grad_scale, uintptr_t found_inf, int64_t B,
                           int64_t T, int64_t D, int64_t N, int64_t rows, uintptr_t errors, uintptr_t stream);

// The update with the same bits every time, in three steps. First the row of each occurrence goes into `keys`, int32 or
// int64 [N] (keys_64), and its bag into bag_of, int32 [N] (absent: one-hot). Then the caller sorts the keys, equal ones
// in their old order. Then each row's gradients are summed in that order, and the row changes once: by SGD, or by
// row-wise Adagrad where there is a `state`.
//   order             int64 [N]: where each of the sorted keys stood before
//   part_keys, parts  int64 [P] and float32 [P, D] to work in, P = embedding_bag_parts(N), about N / 15
void embedding_bag_keys(uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets, uintptr_t keys,
                        bool keys_64, uintptr_t bag_of, int64_t B, int64_t T, int64_t N, int64_t rows, uintptr_t errors,
                        uintptr_t stream);
int64_t embedding_bag_parts(int64_t N);
void embedding_bag_bwd_sorted(uintptr_t weight, uintptr_t state, uintptr_t keys, bool keys_64, uintptr_t order,
                              uintptr_t bag_of, uintptr_t dout, uintptr_t part_keys, uintptr_t parts, uintptr_t lr,
                              double eps, uintptr_t grad_scale, uintptr_t found_inf, int64_t D, int64_t N, int64_t rows,
                              uintptr_t errors, uintptr_t stream);

}  // namespace cuda
