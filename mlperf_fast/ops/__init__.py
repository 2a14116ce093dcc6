"""Ops: one file a family, each with its reference, its backends, its gradient and its public functions."""

from mlperf_fast.ops.adam import adam_
from mlperf_fast.ops.attention import attention
from mlperf_fast.ops.batch_norm import batch_norm
from mlperf_fast.ops.bias_gelu import bias_gelu
from mlperf_fast.ops.conv3x3 import conv3x3
from mlperf_fast.ops.dot_interaction import dot_interaction
from mlperf_fast.ops.dropout import dropout_state
from mlperf_fast.ops.ema import ema_
from mlperf_fast.ops.embedding_bag import (
    embedding_bag,
    embedding_bag_rowwise_adagrad_,
    embedding_bag_sgd_,
    raise_if_bad_ids,
)
from mlperf_fast.ops.embedding_layer_norm import embedding_layer_norm, raise_if_bad_tokens
from mlperf_fast.ops.grad_norm import grad_norm, unscale_
from mlperf_fast.ops.lamb import lamb_, lamb_apply_, lamb_moments_
from mlperf_fast.ops.lars import lars_
from mlperf_fast.ops.layer_norm import layer_norm
from mlperf_fast.ops.mlp import mlp
from mlperf_fast.ops.roc_auc import roc_auc
from mlperf_fast.ops.sgd import sgd_
from mlperf_fast.ops.sgd_momentum import sgd_momentum_
from mlperf_fast.ops.softmax_cross_entropy import raise_if_bad_labels, softmax_cross_entropy

__all__ = [
    "adam_",
    "attention",
    "batch_norm",
    "bias_gelu",
    "conv3x3",
    "dot_interaction",
    "dropout_state",
    "ema_",
    "embedding_bag",
    "embedding_bag_rowwise_adagrad_",
    "embedding_bag_sgd_",
    "embedding_layer_norm",
    "grad_norm",
    "lamb_",
    "lamb_apply_",
    "lamb_moments_",
    "lars_",
    "layer_norm",
    "mlp",
    "raise_if_bad_ids",
    "raise_if_bad_labels",
    "raise_if_bad_tokens",
    "roc_auc",
    "sgd_",
    "sgd_momentum_",
    "softmax_cross_entropy",
    "unscale_",
]
