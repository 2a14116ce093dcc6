"""Weights of a BERT of two narrow layers, by Hugging Face's names and as the reference's checkpoint holds them."""

import numpy as np
import torch

from mlperf_fast.workloads.bert.checkpoint import reference_names, shapes, torch_name

LAYERS, HIDDEN, WORDS_COUNT = 2, 8, 24
SMALL = shapes(hidden=HIDDEN, layers=LAYERS, intermediate=16, vocab=WORDS_COUNT, positions=10)
WORDS, WORD_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
DECODER, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
QUERY = "bert.encoder.layer.0.attention.self.query"


def random_weights(expected=SMALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected.items()}


def reference(weights, slots=("LAMB", "LAMB_1")):
    """The arrays of a TensorFlow checkpoint: kernels [in, out], the optimizer's moments beside each."""
    found = {}
    for name in reference_names(LAYERS):
        values = weights[torch_name(name)].numpy()
        found[name] = np.ascontiguousarray(values.T) if name.endswith("/kernel") else values
        found |= {f"{name}/{slot}": np.full_like(found[name], np.nan) for slot in slots}
    powers = {name: np.float32(0.5) for name in ("beta1_power", "beta2_power")}
    return {**found, **powers, "global_step": np.int64(28252)}
