// Cross-entropy of the softmax over V classes, its gradient in place of the logits, and which rows are right.
//
//   logits [N, V] stored as StoredAs says   labels [N] int32 or int64 (labels_64)   scale one float32, may be absent
//   (1) losses [N] float32   correct [N] bool
// All contiguous, computed in float32. N >= 0, V >= 1, 0 <= label_smoothing <= 1.
// With target = (1 - label_smoothing) onehot(label) + label_smoothing / V:
//   losses[i] = -scale * sum(target * log softmax(logits[i]))      correct[i] = (the first largest logit is the
//   label's)
// A row with the label ignore_index has loss 0, gradient 0, and isn't correct; a row whose loss is NaN isn't either.
//
// Errors: another label outside [0, V) is an IndexError that names row and label, before anything is written.
//
// With e bytes a logit, must move 2 e N V with the gradient (read once, written once; a row stays in L2 between) and
// e N V without. Flops: about 20 N V with the gradient, 18 N V without.
#pragma once
#include <cstdint>

// write_gradient: (softmax(logits) - target) * scale goes over the logits; else they stay as they are.
void softmax_cross_entropy_fwd(uintptr_t logits, uintptr_t labels, bool labels_64, uintptr_t scale, uintptr_t losses,
                               uintptr_t correct, int64_t N, int64_t V, int64_t ignore_index, float label_smoothing,
                               bool write_gradient, int stored_as);

// dlogits[i] *= dlosses[i] for the rows where that isn't 1. Must move 2 e V a row of these.
void softmax_cross_entropy_bwd(uintptr_t dlogits, uintptr_t dlosses, int64_t N, int64_t V, int stored_as);
