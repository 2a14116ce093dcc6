"""What the Triton kernels are compiled with: types, constants and sizes as launches have them.

Which constants a launch takes comes from the kernels' own tile functions.
"""

import torch
from mlperf_fast.kernels import (
    attention,
    batch_norm,
    bias_gelu,
    dot_interaction,
    embedding_bag,
    embedding_layer_norm,
    layer_norm,
    mlp,
    sgd,
    softmax_cross_entropy,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sized(n: int) -> str:
    return "i32:16" if n % 16 == 0 else "i32"


def attention_cases():
    kernels = (
        (attention._attention_fwd_kernel, attention.FORWARD),
        (attention._attention_bwd_dq_kernel, attention.QUERIES),
        (attention._attention_bwd_dkv_kernel, attention.KEYS),
    )
    # BERT's heads; the largest, the smallest
    kinds = [(64, name, state) for name in DTYPES for state in ("*i64", None) if name != "fp16" or state]
    for D, name, state in (
        *kinds,
        (32, "bf16", "*i64"),
        (128, "bf16", "*i64"),
        (128, "fp32", "*i64"),
        (16, "fp32", "*i64"),
    ):
        arguments = {
            **dict.fromkeys(("qkv_ptr", "out_ptr", "dout_ptr", "dqkv_ptr"), f"*{name}"),
            **dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32"),
            "cu_seqlens_ptr": "*i32",
            "state_ptr": state,
            **dict.fromkeys(("threshold", "T", "H", "b", "longest"), "i32"),
            "site": 1 if D == 16 else "i32",  # Triton compiles a 1 in
            **dict.fromkeys(("keep_scale", "scale"), "fp32"),
            "UPCAST": False,
        }
        for kernel, blocks in kernels:
            sizes = attention.tile(D, DTYPES[name], blocks)
            yield f"{D}-{name}-{'dropout' if state else 'plain'}", kernel, {**arguments, **sizes}


def batch_norm_cases():
    merging = (batch_norm._batch_norm_merge_moments_kernel, batch_norm._batch_norm_merge_sums_kernel)
    sums = (batch_norm._batch_norm_moments_kernel, batch_norm._batch_norm_sums_kernel)
    maps = (batch_norm._batch_norm_apply_kernel, batch_norm._batch_norm_dx_kernel)
    # ResNet's widest layer: the largest tiles
    for name, kernels in (("bf16", sums + maps), ("fp32", maps), ("merging", merging)):
        stored = ("x_ptr", "residual_ptr", "y_ptr", "dy_ptr", "dx_ptr", "dresidual_ptr")
        floats = ("mean_ptr", "variance_ptr", "gamma_ptr", "beta_ptr", "moments_ptr", "running_mean_ptr")
        floats += ("running_variance_ptr", "sums_ptr", "partial_ptr")
        arguments = {
            **dict.fromkeys(stored, f"*{name}"),
            **dict.fromkeys(floats, "*fp32"),
            "mask_ptr": "*i32",
            **dict.fromkeys(("R", "STEPS", "blocks"), "i32"),
            "height": sized(batch_norm.ROWS),
            **dict.fromkeys(("eps", "share", "momentum", "unbiased"), "fp32"),
            "C": sized(2048),
            "RELU": True,
            **(batch_norm.merging_tile(batch_norm.BLOCKS) if kernels is merging else batch_norm.tile(2048)),
        }
        for kernel in kernels:
            yield name, kernel, arguments


def bias_gelu_cases():
    for N in (1, 4096):
        for name in DTYPES:
            pointers = dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), f"*{name}")
            pointers |= dict.fromkeys(("bias_ptr", "sums_ptr"), "*fp32")
            for kernel in (bias_gelu._bias_gelu_fwd_kernel, bias_gelu._bias_gelu_bwd_kernel):
                constants = {"B": "i32", "N": sized(N), "STEPS": bias_gelu.STEPS, **bias_gelu.tile(N)}
                yield f"{N}-{name}", kernel, {**pointers, **constants}


def dot_interaction_cases():
    # the smallest tiles, DLRM, the largest tiles with an odd length
    for T, D in ((1, 16), (26, 128), (127, 100)):
        for name, dtype in DTYPES.items():
            names = ("dense_ptr", "sparse_ptr", "dout_ptr", "out_ptr", "ddense_ptr", "dsparse_ptr")
            pointers = dict.fromkeys(names, f"*{name}")
            constants = {"T": sized(T), "D": sized(D), "UPCAST": False, **dot_interaction.tile(T, D, dtype)}
            for kernel in (dot_interaction._dot_interaction_fwd_kernel, dot_interaction._dot_interaction_bwd_kernel):
                yield f"{T}x{D}-{name}", kernel, {**pointers, **constants}


def embedding_bag_cases():
    for D in (128, 1000):
        for kind, bag_offsets in (("one-hot", None), ("multi-hot", "*i64")):
            for rule, state in (("sgd", None), ("adagrad", "*fp32")):
                floats = (
                    "weight_ptr",
                    "out_ptr",
                    "dout_ptr",
                    "partial_ptr",
                    "lr_ptr",
                    "grad_scale_ptr",
                    "found_inf_ptr",
                )
                arguments = {
                    **dict.fromkeys(floats, "*fp32"),
                    "state_ptr": state,
                    "row_offsets_ptr": "*i64",
                    "ids_ptr": "*i32",
                    "bag_offsets_ptr": bag_offsets,
                    "errors_ptr": "*i64",
                    "keys_ptr": "*i32",
                    "order_ptr": "*i64",
                    "bag_of_ptr": bag_offsets and "*i32",
                    "eps": "fp32",
                    "D": sized(D),
                    **dict.fromkeys(("bags", "T", "N", "rows"), "i32"),
                }
                for kernel in (embedding_bag._embedding_bag_sorted_kernel, embedding_bag._embedding_bag_join_kernel):
                    yield f"{D}-{kind}-{rule}", kernel, {**arguments, **embedding_bag.run_tile(D)}
            for kernel in (embedding_bag._embedding_bag_fwd_kernel, embedding_bag._embedding_bag_bwd_sgd_kernel):
                yield f"{D}-{kind}", kernel, {**arguments, **embedding_bag.bag_tile(D)}
            keys_tile = {"BAGS": embedding_bag.KEYS_BAGS, **embedding_bag.OPTIONS}
            yield f"{D}-{kind}", embedding_bag._embedding_bag_keys_kernel, {**arguments, **keys_tile}


def embedding_layer_norm_cases():
    for H in (40, 1024):  # several tokens a program, BERT-large
        for name in DTYPES if H == 1024 else ("fp32", "bf16"):
            for kind, state in (("dropout", "*i64"), ("plain", None))[: 2 if H == 1024 else 1]:
                stored = ("word_ptr", "position_ptr", "segment_ptr", "y_ptr", "dy_ptr")
                floats = ("gamma_ptr", "beta_ptr", "mean_ptr", "rstd_ptr", "dsum_ptr", "sums_ptr")
                arguments = {
                    **dict.fromkeys(("ids_ptr", "positions_ptr", "segments_ptr"), "*i32"),
                    **dict.fromkeys(stored, f"*{name}"),
                    **dict.fromkeys(floats, "*fp32"),
                    "errors_ptr": "*i64",
                    "state_ptr": state,
                    **dict.fromkeys(("site", "threshold", "V", "P", "S", "T", "STEPS"), "i32"),
                    **dict.fromkeys(("scale", "eps"), "fp32"),
                    "H": sized(H),
                    **layer_norm.tile(H),
                }
                for kernel in (
                    embedding_layer_norm._embedding_layer_norm_fwd_kernel,
                    embedding_layer_norm._embedding_layer_norm_bwd_kernel,
                ):
                    yield f"{H}-{name}-{kind}", kernel, arguments


def layer_norm_cases():
    for N in (40, 1024, 4096):  # several rows a program, BERT-large, the longest rows
        for name in DTYPES if N == 1024 else ("fp32", "bf16"):
            for kind, state in (("dropout", "*i64"), ("plain", None))[: 2 if N == 1024 else 1]:
                rows = dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr", "dy_ptr", "dx_ptr"), f"*{name}")
                floats = ("bias_ptr", "gamma_ptr", "beta_ptr", "mean_ptr", "rstd_ptr", "sums_ptr")
                arguments = {
                    **rows,
                    **dict.fromkeys(floats, "*fp32"),
                    "dresidual_ptr": state and f"*{name}",
                    "state_ptr": state,
                    **dict.fromkeys(("site", "threshold", "B", "STEPS"), "i32"),
                    **dict.fromkeys(("scale", "eps"), "fp32"),
                    "N": sized(N),
                    **layer_norm.tile(N),
                }
                for kernel in (layer_norm._layer_norm_fwd_kernel, layer_norm._layer_norm_bwd_kernel):
                    yield f"{N}-{name}-{kind}", kernel, arguments


def mlp_cases():
    for N in (1, 32, 1024):
        for name in DTYPES:
            for kind, g in (("relu", f"*{name}"), ("linear", None)):
                pointers = {"y_ptr": f"*{name}", "dy_ptr": f"*{name}", "g_ptr": g, "sums_ptr": "*fp32"}
                yield (
                    f"{N}-{name}-{kind}",
                    mlp._mlp_bias_bwd_kernel,
                    {**pointers, "B": "i32", "N": sized(N), **mlp.tile(N)},
                )


def sgd_cases():
    for aligned in (True, False):
        pointers = {"addresses_ptr": "*i64", "sizes_ptr": "*i64", "chunks_ptr": "*i64"}
        pointers |= dict.fromkeys(("lr_ptr", "grad_scale_ptr", "found_inf_ptr"), "*fp32")
        yield f"aligned={aligned}", sgd._sgd_kernel, {**pointers, "count": "i32", "ALIGNED": aligned, **sgd.tile()}


def softmax_cross_entropy_cases():
    # few classes, ImageNet, BERT's vocabulary
    for V in (5, 1000, 30522):
        for name in DTYPES:
            floats = ("scale_ptr", "losses_ptr", "dlosses_ptr")
            arguments = {
                **dict.fromkeys(("logits_ptr", "dlogits_ptr"), f"*{name}"),
                **dict.fromkeys(floats, "*fp32"),
                "labels_ptr": "*i64",
                "correct_ptr": "*i1",
                "errors_ptr": "*i64",
                "ignore_index": "i32",
                "label_smoothing": "fp32",
                "V": sized(V),
                "GRADIENT": True,
                **softmax_cross_entropy.tile(V),
            }
            for kernel in (
                softmax_cross_entropy._softmax_cross_entropy_fwd_kernel,
                softmax_cross_entropy._softmax_cross_entropy_bwd_kernel,
            ):
                yield f"{V}-{name}", kernel, arguments
        evaluation = arguments | {"GRADIENT": False, "labels_ptr": "*i32", "scale_ptr": None}
        yield f"{V}-{name}-evaluation", softmax_cross_entropy._softmax_cross_entropy_fwd_kernel, evaluation


# (kernel, case, arguments)
CASES = [
    (kernel, name, arguments)
    for cases in (
        attention_cases,
        batch_norm_cases,
        bias_gelu_cases,
        dot_interaction_cases,
        embedding_bag_cases,
        embedding_layer_norm_cases,
        layer_norm_cases,
        mlp_cases,
        sgd_cases,
        softmax_cross_entropy_cases,
    )
    for name, kernel, arguments in cases()
]
