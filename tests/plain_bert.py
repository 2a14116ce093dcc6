"""BERT for pre-training as anyone would write it: a padded batch, plain PyTorch, Hugging Face's names. The twin of
mlperf_fast's model in tests and benchmarks; nothing of it is shared with the package."""

import torch
import torch.nn.functional as F
from torch import nn


class PlainBERT(nn.Module):
    def __init__(self, words, hidden, layers, heads, intermediate, longest, gelu="tanh"):
        super().__init__()
        self.heads, self.gelu = heads, gelu
        self.bert = nn.Module()
        embeddings = self.bert.embeddings = nn.Module()
        embeddings.word_embeddings = nn.Embedding(words, hidden)
        embeddings.position_embeddings = nn.Embedding(longest, hidden)
        embeddings.token_type_embeddings = nn.Embedding(2, hidden)
        embeddings.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(layer(hidden, intermediate) for _ in range(layers))
        self.bert.pooler = with_dense(hidden, hidden)
        self.cls = nn.Module()
        self.cls.predictions = nn.Module()
        self.cls.predictions.bias = nn.Parameter(torch.zeros(words))
        self.cls.predictions.transform = with_dense(hidden, hidden)
        self.cls.predictions.transform.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.cls.seq_relationship = nn.Linear(hidden, 2)

    def encode(self, ids, segments, mask):
        """[B, S] each; mask is 1 where a token is. -> [B, S, H]"""
        e = self.bert.embeddings
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = e.LayerNorm(e.word_embeddings(ids) + e.token_type_embeddings(segments) + e.position_embeddings(positions))
        hidden_keys = (1 - mask.to(x.dtype))[:, None, None, :] * -10000.0
        for one in self.bert.encoder.layer:
            a = one.attention
            q, k, v = (
                getattr(a.self, name)(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden_keys).transpose(1, 2).flatten(2)
            x = a.output.LayerNorm(x + a.output.dense(context))
            h = F.gelu(one.intermediate.dense(x), approximate=self.gelu)
            x = one.output.LayerNorm(x + one.output.dense(h))
        return x

    def word_logits(self, x):
        """[..., H] -> [..., words]"""
        t = self.cls.predictions.transform
        h = t.LayerNorm(F.gelu(t.dense(x), approximate=self.gelu))
        return h @ self.bert.embeddings.word_embeddings.weight.t() + self.cls.predictions.bias

    def forward(self, ids, segments, mask, labels, random_next):
        """labels [B, S] with -1 where nothing is masked."""
        x = self.encode(ids, segments, mask)
        logits = self.word_logits(x).flatten(0, 1)
        labels = labels.flatten()
        losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        pooled = torch.tanh(self.bert.pooler.dense(x[:, 0]))
        next_sentence = F.cross_entropy(self.cls.seq_relationship(pooled), random_next)
        return losses.sum() / ((labels >= 0).sum() + 1e-5) + next_sentence


def layer(hidden, intermediate):
    one = nn.Module()
    one.attention = nn.Module()
    one.attention.self = nn.Module()
    for name in ("query", "key", "value"):
        setattr(one.attention.self, name, nn.Linear(hidden, hidden))
    one.attention.output = with_norm(hidden, hidden)
    one.intermediate = with_dense(hidden, intermediate)
    one.output = with_norm(intermediate, hidden)
    return one


def with_dense(into, out):
    module = nn.Module()
    module.dense = nn.Linear(into, out)
    return module


def with_norm(into, out):
    module = with_dense(into, out)
    module.LayerNorm = nn.LayerNorm(out, eps=1e-12)
    return module


def padded(batch):
    """Arguments of PlainBERT for a batch without padding: ids, segments, mask, labels [B, S], random_next [B]."""
    lengths = batch.cu_seqlens.diff().long()
    kept = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = int(lengths.sum())
    rows = []
    labels = torch.full((len(batch.ids),), -1)
    real = batch.labels >= 0
    labels[batch.masked[real].long()] = batch.labels[real].long()
    for flat, fill in ((batch.ids, 0), (batch.segments, 0), (labels, -1)):
        row = torch.full(kept.shape, fill)
        row[kept] = flat[:tokens].long()
        rows.append(row)
    ids, segments, labels = rows
    return ids, segments, kept.long(), labels, batch.random_next.long()
