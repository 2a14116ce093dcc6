"""The tensors that a closed log must name in `weights_initialization`, one record each, by benchmark.

They are the reference's names, whatever our models call their tensors. Source: mlperf-logging,
compliance_checker/training_2.0.0/closed_*.yaml, which compares the set exactly: an extra record fails the log too.
"""


def resnet() -> list[str]:
    """161 names."""
    names = ["conv0_weight", "bn0_gamma", "bn0_beta", "fc1_weight", "fc1_bias"]
    for stage, units in enumerate((3, 4, 6, 3), 1):
        for unit in range(1, units + 1):
            for layer in ("1", "2", "3", "1sc") if unit == 1 else ("1", "2", "3"):
                norm = "sc" if layer == "1sc" else layer  # the shortcut's convolution is conv1sc, its norm is bnsc
                prefix = f"stage{stage}_unit{unit}_"
                names += [f"{prefix}conv{layer}_weight", f"{prefix}bn{norm}_gamma", f"{prefix}bn{norm}_beta"]
    return names


def unet3d() -> list[str]:
    """50 names."""
    blocks = ["input", *(f"down{i}" for i in range(5)), *(f"up{i}" for i in range(5))]
    names = [f"{b}_block_{i}_{layer}" for b in blocks for i in (0, 1) for layer in ("conv", "instancenorm")]
    return [*names, *(f"up{i}_deconv" for i in range(5)), "output_conv"]


def retinanet() -> list[str]:
    """89 names. The prefix `module.` belongs to the name, with or without a wrapper; frozen norms aren't listed."""
    names = ["backbone.body.conv1.weight"]
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        names.append(f"backbone.body.layer{layer}.0.downsample.0.weight")
        names += [f"backbone.body.layer{layer}.{b}.conv{c}.weight" for b in range(blocks) for c in (1, 2, 3)]
    modules = [f"backbone.fpn.{kind}_blocks.{i}" for kind in ("inner", "layer") for i in range(3)]
    modules += ["backbone.fpn.extra_blocks.p6", "backbone.fpn.extra_blocks.p7"]
    for head, last in (("classification_head", "cls_logits"), ("regression_head", "bbox_reg")):
        modules += [f"head.{head}.{part}" for part in ("conv.0", "conv.2", "conv.4", "conv.6", last)]
    names += [f"{module}.{part}" for module in modules for part in ("weight", "bias")]
    return [f"module.{name}" for name in names]


def maskrcnn() -> list[str]:
    """21 names."""
    names = [f"FPN_{kind}_block{i}" for i in range(1, 5) for kind in ("inner", "layer")]
    names += [f"RPNHead_{part}" for part in ("conv", "cls", "bbox")]
    names += ["ROI_BOX_FEATURE_EXTRACTOR_fc6", "ROI_BOX_FEATURE_EXTRACTOR_fc7"]
    names += ["ROI_BOX_PREDICTOR_cls", "ROI_BOX_PREDICTOR_bbox"]
    names += [f"ROI_MASK_FEATURE_EXTRACTOR_fcn{i}" for i in range(1, 5)]
    return [*names, "ROI_MASK_PREDICTOR_fcn5", "ROI_MASK_PREDICTOR_fcn_logits"]


def rnnt() -> list[str]:
    """7 names."""
    return ["pre_rnn", "post_rnn", "pred_embed", "dec_rnn", "joint_pred", "joint_enc", "joint_net"]


def bert(layers: int = 24) -> list[str]:
    """398 names, those of the TensorFlow checkpoint that every run starts from; other `layers`: a demo's."""
    norm, dense = ("LayerNorm/gamma", "LayerNorm/beta"), ("dense/kernel", "dense/bias")
    names = [f"bert/embeddings/{kind}_embeddings" for kind in ("word", "position", "token_type")]
    names += [f"bert/embeddings/{part}" for part in norm]
    for layer in range(layers):
        prefix = f"bert/encoder/layer_{layer}/"
        names += [f"{prefix}attention/self/{m}/{p}" for m in ("query", "key", "value") for p in ("kernel", "bias")]
        names += [f"{prefix}attention/output/{part}" for part in dense + norm]
        names += [f"{prefix}intermediate/{part}" for part in dense]
        names += [f"{prefix}output/{part}" for part in dense + norm]
    names += [f"bert/pooler/{part}" for part in dense]
    names += ["cls/predictions/output_bias", *(f"cls/predictions/transform/{part}" for part in dense + norm)]
    return [*names, "cls/seq_relationship/output_weights", "cls/seq_relationship/output_bias"]


def dlrm() -> list[str]:
    """9 names."""
    return ["embeddings", *(f"bottom_mlp_dense{i}" for i in (1, 2, 3)), *(f"top_mlp_dense{i}" for i in (1, 2, 3, 4, 5))]


def minigo() -> list[str]:
    """None: the check is commented out for this benchmark in YAML closed_minigo.yaml."""
    return []
