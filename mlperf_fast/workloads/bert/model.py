"""BERT for pre-training without padding: T tokens of b sequences, one behind the other, from the input to the loss.

    x  = embedding_layer_norm(ids, positions, segments)                 [T, H]     sum of three, norm, dropout
    24 times:
      x  = norm(x + dropout(attention(x Wqkv + bqkv) Wo + bo))          [T, H]     attention by cu_seqlens
      x  = norm(x + dropout(gelu(x W1 + b1) W2 + b2))                   [T, H]
    p  = tanh(x[first tokens] Wp + bp)                                  [b, H]     next sentence: p Wn + bn
    h  = norm(gelu(x[masked] Wt + bt))                                  [M, H]     masked words: h E' + c

In the last layer only what a loss reads goes on after the attention: first and masked tokens, about 15 %.
Source: mlcommons/training, bert, modeling.py and run_pretraining.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlperf_fast.errors import UserError
from mlperf_fast.nn.norm import LayerNorm
from mlperf_fast.ops.attention import attention
from mlperf_fast.ops.bias_gelu import bias_gelu
from mlperf_fast.ops.dropout import dropout_state
from mlperf_fast.ops.embedding_layer_norm import embedding_layer_norm
from mlperf_fast.ops.softmax_cross_entropy import softmax_cross_entropy
from mlperf_fast.optim.optimizer import load_tensors
from mlperf_fast.workloads.bert.data import IGNORED, Batch

EPS = 1e-12  # of every norm
VOCABULARY_MULTIPLE = 8  # 16-bit matrix products are slow where a row isn't a multiple of 16 bytes
NEVER = -10_000.0  # the bias of a word that only fills the table up: its probability is 0, and so is its gradient
SITES = 3  # dropouts of a layer: probabilities, attention's output, the layer's output; 0 is the embedding's


class BERT(nn.Module):
    """`hidden` = heads * head size. `longest`: tokens that a sequence may have. `seed` is dropout's.

    The state_dict has the names of Hugging Face's BertForPreTraining, which NVIDIA's checkpoints have too: query, key
    and value apart, the word table without the words that fill it up, and `dropout_state` beside them.
    """

    dropout_state: Tensor
    id_errors: Tensor
    label_errors: Tensor

    def __init__(
        self,
        words: int,
        hidden: int,
        layers: int,
        heads: int,
        intermediate: int,
        longest: int,
        *,
        dropout: float = 0.1,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise UserError(f"BERT: hidden {hidden} must be a multiple of the {heads} heads")
        self.words, self.longest, self.dropout = words, longest, dropout
        table = -(-words // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.word_embeddings = nn.Parameter(torch.empty(table, hidden, device=device))
        self.position_embeddings = nn.Parameter(torch.empty(longest, hidden, device=device))
        self.segment_embeddings = nn.Parameter(torch.empty(2, hidden, device=device))
        self.embedding_layer_norm = LayerNorm(hidden, device)
        self.layers = nn.ModuleList(
            Layer(hidden, heads, intermediate, dropout, SITES * i + 1, device) for i in range(layers)
        )
        self.pooler = nn.Linear(hidden, hidden, device=device)
        self.next_sentence = nn.Linear(hidden, 2, device=device)
        self.transform = nn.Linear(hidden, hidden, device=device)
        self.transform_layer_norm = LayerNorm(hidden, device)
        self.word_bias = nn.Parameter(torch.empty(table, device=device))
        place = self.word_embeddings.device
        # On the device: a captured step draws anew in each replay. Real under device="meta" too, as integers are.
        place = torch.device("cpu") if place.type == "meta" else place
        self.register_buffer("dropout_state", dropout_state(seed, place))
        for name in ("id_errors", "label_errors"):  # where device kernels record the first bad one
            self.register_buffer(name, torch.zeros(3, dtype=torch.int64, device=place), persistent=False)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last layer's rows of each sequence's first token [b, H], and of its masked tokens [M, H]."""
        p = self.dropout if self.training else 0.0
        if p:
            self.dropout_state[1].add_(1)
        norm = self.embedding_layer_norm
        x = embedding_layer_norm(
            batch.ids, batch.positions, batch.segments, self.word_embeddings, self.position_embeddings,
            self.segment_embeddings, norm.weight, norm.bias, p=p, state=self.dropout_state, site=0, eps=EPS,
            errors=self.id_errors,
        )  # fmt: skip
        first = batch.cu_seqlens[:-1]
        read = torch.cat([first, batch.masked])
        for layer in self.layers:
            x = layer(x, batch.cu_seqlens, self.longest, self.dropout_state, read if layer is self.layers[-1] else None)
        return x.split([len(first), len(batch.masked)])

    def next_sentence_logits(self, first: Tensor) -> Tensor:
        """[b, H] -> [b, 2]"""
        return self.next_sentence(torch.tanh(self.pooler(first)))

    def word_logits(self, masked: Tensor) -> Tensor:
        """[M, H] -> [M, words and what fills them up]; the decoder is the word table."""
        h = bias_gelu(F.linear(masked, self.transform.weight), self.transform.bias)
        return F.linear(self.transform_layer_norm(h), self.word_embeddings, self.word_bias)

    def forward(self, batch: Batch) -> Tensor:
        """The loss: mean over the masked tokens of this process's batch, plus next sentence's mean; 0-dim float32."""
        first, masked = self.encode(batch)
        scale = 1 / (batch.masked_count + 1e-5)
        logits = self.word_logits(masked)
        losses, _ = softmax_cross_entropy(logits, batch.labels, scale, ignore_index=IGNORED, errors=self.label_errors)
        next_sentence = F.cross_entropy(self.next_sentence_logits(first).float(), batch.random_next.long())
        return losses.sum() + next_sentence

    def correct(self, batch: Batch) -> Tensor:
        """How many masked tokens are predicted right: 0-dim int64."""
        _, masked = self.encode(batch)
        return softmax_cross_entropy(self.word_logits(masked), batch.labels, ignore_index=IGNORED)[1].sum()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: view.detach() for name, view in tensors(self).items()} | {"dropout_state": self.dropout_state}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> None:
        """UserError, naming the tensor, for one that is missing, too many, or of another shape."""
        with torch.no_grad():
            load_tensors("BERT", self.state_dict(), dict(state_dict))


class Layer(nn.Module):
    """One encoder layer; query, key and value are one matrix product. `site`: the number of its first dropout."""

    def __init__(
        self, hidden: int, heads: int, intermediate: int, dropout: float, site: int, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.site = heads, dropout, site
        self.qkv = nn.Linear(hidden, 3 * hidden, device=device)
        self.out = nn.Linear(hidden, hidden, device=device)
        self.out_layer_norm = LayerNorm(hidden, device)
        self.up = nn.Linear(hidden, intermediate, device=device)
        self.down = nn.Linear(intermediate, hidden, device=device)
        self.down_layer_norm = LayerNorm(hidden, device)

    def forward(self, x: Tensor, cu_seqlens: Tensor, longest: int, state: Tensor, read: Tensor | None) -> Tensor:
        """x [T, H] -> [T, H], or only the rows `read` of it."""
        p = self.dropout if self.training else 0.0
        qkv = self.qkv(x).view(len(x), 3, self.heads, -1)
        context = attention(qkv, cu_seqlens, longest, p=p, state=state, site=self.site).view(x.shape)
        if read is not None:
            context, x = context.index_select(0, read), x.index_select(0, read)
        # The layers' biases are added where the next op reads the product anyway.
        h = F.linear(context, self.out.weight)
        x = self.out_layer_norm(h, bias=self.out.bias, residual=x, p=p, state=state, site=self.site + 1)
        h = F.linear(bias_gelu(F.linear(x, self.up.weight), self.up.bias), self.down.weight)
        return self.down_layer_norm(h, bias=self.down.bias, residual=x, p=p, state=state, site=self.site + 2)


def tensors(net: BERT) -> dict[str, Tensor]:
    """Hugging Face's name -> a view of what holds it: 398 for 24 layers, each with its own norms in LAMB."""
    found = {
        "bert.embeddings.word_embeddings.weight": net.word_embeddings[: net.words],
        "bert.embeddings.position_embeddings.weight": net.position_embeddings,
        "bert.embeddings.token_type_embeddings.weight": net.segment_embeddings,
        **pair("bert.embeddings.LayerNorm", net.embedding_layer_norm),
    }
    for i, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        name = f"bert.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            parts = getattr(layer.qkv, kind).chunk(3)
            for part, view in zip(("query", "key", "value"), parts, strict=True):
                found[f"{name}.attention.self.{part}.{kind}"] = view
        found |= pair(f"{name}.attention.output.dense", layer.out)
        found |= pair(f"{name}.attention.output.LayerNorm", layer.out_layer_norm)
        found |= pair(f"{name}.intermediate.dense", layer.up)
        found |= pair(f"{name}.output.dense", layer.down)
        found |= pair(f"{name}.output.LayerNorm", layer.down_layer_norm)
    return {
        **found,
        **pair("bert.pooler.dense", net.pooler),
        "cls.predictions.bias": net.word_bias[: net.words],
        **pair("cls.predictions.transform.dense", net.transform),
        **pair("cls.predictions.transform.LayerNorm", net.transform_layer_norm),
        **pair("cls.seq_relationship", net.next_sentence),
    }


def pair(name: str, module: nn.Linear | LayerNorm) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def parts(name: str) -> int:
    """How many of the reference's tensors a parameter is, for LAMB's norms: query, key and value stay three."""
    return 3 if ".qkv." in name else 1


@torch.no_grad()
def initialise(net: BERT, seed: int, std: float = 0.02) -> None:
    """The reference's: matrices and tables truncated normal, cut at two `std`; biases 0, norms 1 and 0.

    Drawn on the CPU, so the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, view in tensors(net).items():
        if name.endswith("bias"):
            view.zero_()
        elif "LayerNorm" in name:
            view.fill_(1)
        else:
            drawn = torch.empty(view.shape)
            nn.init.trunc_normal_(drawn, 0, std, -2 * std, 2 * std, generator=generator)
            view.copy_(drawn)
    fill_up(net)


@torch.no_grad()
def load_weights(net: BERT, weights: Mapping[str, Tensor]) -> None:
    """Copies weights of Hugging Face's names into place: all of them, which checkpoint.py has seen to."""
    for name, view in tensors(net).items():
        view.copy_(weights[name])
    fill_up(net)


@torch.no_grad()
def fill_up(net: BERT) -> None:
    """The words that no text has: zero rows, and never predicted."""
    net.word_embeddings[net.words :] = 0
    net.word_bias[net.words :] = NEVER
