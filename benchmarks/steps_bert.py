"""Whole BERT training steps, forward to update, on batches that lie ready in memory.

    python -m benchmarks.steps_bert

ours                  workloads.bert: TrainStep, no padding anywhere, LAMB; on a GPU captured as a graph
transformers padded   Hugging Face's BertForPreTraining with SDPA on the batch padded to the greatest length, AdamW
transformers cropped  the same, padded to the batch's own longest sequence
torch compile         torch.compile of `transformers padded`, whose shapes don't change from batch to batch
All have the same sequences, sizes, dropout and weights' shapes. torch has no LAMB: its fused AdamW is the peers'
optimizer, which costs less.

    python -m benchmarks.steps_bert --memory     also: the most memory that each had, in a process of its own
"""

import argparse
import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.workloads.bert import data, workload
from mlperf_fast.workloads.bert import model as bert
from mlperf_fast.workloads.bert.presets import PRESETS, Model
from mlperf_fast.workloads.bert.sequences import Sequences, starts_of

from . import command, options, peak
from .competitors import compiled, library, library_absence
from .hugging_face import classes
from .measure import ABSENT, Candidate, Local, Row, compare

SETS = 4  # batches that rotate
PEERS = ("transformers padded", "transformers cropped")


@dataclass(frozen=True)
class Case:
    name: str
    words: int
    longest: int
    batch: int
    model: Model
    precision: str = "fp32"

    def shape(self) -> str:
        m = self.model
        return f"{self.name}: {self.batch} sequences up to {self.longest}, {m.layers} layers of {m.hidden}"


BASE = Model(hidden=768, layers=12, heads=12, intermediate=3072)
DEMO = Case("demo", 395, 64, 32, PRESETS["demo"]().model)
CASES = [DEMO, Case("BERT-base", 30522, 512, 8, BASE)]
COMPILED_BYTES = 32 << 30  # with 24 GiB four models of BERT-base and their activations leave nothing to the system
QUICK_CASES = [Case("tiny", 61, 24, 4, Model(hidden=32, layers=1, heads=2, intermediate=64))]


def draw(case: Case, seed: int) -> Sequences:
    """Lengths uniform up to the greatest: half of it on average; 15 % of each masked."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, case.longest + 1, case.batch)
    masked = np.maximum(1, np.rint(0.15 * lengths)).astype(np.int64)
    return Sequences(
        tokens=rng.integers(5, case.words, lengths.sum()).astype(np.int16),
        starts=starts_of(lengths),
        first=(lengths // 2).astype(np.int16),
        positions=np.concatenate([
            np.sort(rng.choice(np.arange(1, n), m, replace=False)) for n, m in zip(lengths, masked, strict=True)
        ]).astype(np.int16),
        labels=rng.integers(5, case.words, masked.sum()).astype(np.int16),
        mask_starts=starts_of(masked),
        random_next=rng.integers(2, size=case.batch).astype(np.int8),
    )  # fmt: skip


def flops(case: Case) -> int:
    """Forward once and backward twice: products over the tokens, attention over pairs, heads over masked tokens."""
    s, m = draw(case, 0), case.model
    tokens, masked, pairs = s.lengths.sum(), s.masked.sum(), (s.lengths**2).sum()
    read = masked + case.batch
    encoder = m.layers * (4 * m.hidden**2 + 2 * m.hidden * m.intermediate) * tokens + 2 * m.layers * m.hidden * pairs
    spared = (m.hidden**2 + 2 * m.hidden * m.intermediate) * (tokens - read)
    heads = masked * (m.hidden**2 + m.hidden * case.words) + case.batch * m.hidden**2
    return 6 * int(encoder - spared + heads)


def measure(chosen: Namespace, only: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in only or (QUICK_CASES if chosen.quick else CASES):
        drawn = [draw(case, seed) for seed in range(SETS)]
        candidates: dict[str, Candidate | str] = {"ours": Local(ours(case, drawn, chosen.device))}
        for name in PEERS:
            candidates[name] = library(
                "transformers", chosen.device, lambda n=name, c=case, d=drawn: theirs(c, d, chosen.device, n)
            )
        if isinstance(candidates[PEERS[0]], str):
            candidates["torch compile"] = candidates[PEERS[0]]
        elif case.model is BASE and memory() < COMPILED_BYTES:
            candidates["torch compile"] = f"{ABSENT}a fourth such model wants {COMPILED_BYTES >> 30} GiB of memory"
        else:
            candidates["torch compile"] = compiled(
                chosen, lambda c=case, d=drawn: theirs(c, d, chosen.device, "transformers padded", compiled=True)
            )
        results = compare(candidates, command.effort(chosen))
        yield Row("BERT step", case.shape(), case.precision, chosen.threads, 0, flops(case), "gemm", results, "ours")


def memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ours(case: Case, drawn: Sequence[Sequences], device: torch.device) -> Callable[[int], object]:
    cfg = dataclasses.replace(PRESETS["demo"](), model=case.model)
    m = case.model
    net = bert.BERT(case.words, m.hidden, m.layers, m.heads, m.intermediate, case.longest, dropout=m.dropout)
    bert.initialise(net, 0)
    net.to(device)
    step = TrainStep(workload.loss, net, workload.optimizer(cfg, net), Ranks(0, 1, device), case.precision)
    batches = [data.Batch(*(x.to(device) for x in data.packed(s, 1, 1, torch.device("cpu")))) for s in drawn]
    return lambda number: step(batches[number % SETS])


def theirs(
    case: Case, drawn: Sequence[Sequences], device: torch.device, name: str, *, compiled: bool = False
) -> Callable[[int], object]:
    net = hugging_face(case).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    batches = [padded(s, int(s.lengths.max()) if name.endswith("cropped") else case.longest) for s in drawn]
    inputs = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    forward = torch.compile(net) if compiled else net

    def step(number: int) -> None:
        optimizer.zero_grad()
        forward(**inputs[number % SETS]).loss.backward()
        optimizer.step()

    return step


def hugging_face(case: Case, dropout: float | None = None) -> torch.nn.Module:
    """BertForPreTraining of the case's sizes, with the benchmark's GELU and eps, attention by SDPA."""
    BertConfig, BertForPreTraining = classes({
        "BertConfig": "bert.configuration_bert", "BertForPreTraining": "bert.modeling_bert"
    })  # fmt: skip
    m = case.model
    p = m.dropout if dropout is None else dropout
    config = BertConfig(
        vocab_size=case.words, hidden_size=m.hidden, num_hidden_layers=m.layers, num_attention_heads=m.heads,
        intermediate_size=m.intermediate, max_position_embeddings=case.longest, hidden_act="gelu_new",
        layer_norm_eps=1e-12, hidden_dropout_prob=p, attention_probs_dropout_prob=p, attn_implementation="sdpa",
    )  # fmt: skip
    return BertForPreTraining(config)


def padded(s: Sequences, width: int) -> dict[str, torch.Tensor]:
    """Arguments of BertForPreTraining: [B, width] each; label -100 where nothing is masked."""
    shape = (len(s), width)
    found = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, -100),
    }
    for row in range(len(s)):
        tokens = s.tokens[s.starts[row] : s.starts[row + 1]]
        masks = slice(s.mask_starts[row], s.mask_starts[row + 1])
        found["input_ids"][row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        found["token_type_ids"][row, s.first[row] : len(tokens)] = 1
        found["attention_mask"][row, : len(tokens)] = 1
        at = torch.from_numpy(s.positions[masks].astype(np.int64))
        found["labels"][row, at] = torch.from_numpy(s.labels[masks].astype(np.int64))
    found["next_sentence_label"] = torch.from_numpy(s.random_next.astype(np.int64))
    return found


def step_of(case: Case, name: str, device: torch.device) -> Callable[[int], object]:
    drawn = [draw(case, seed) for seed in range(SETS)]
    return ours(case, drawn, device) if name == "ours" else theirs(case, drawn, device, name)


def run(chosen: Namespace) -> int:
    command.settle(chosen)
    code = command.measure_all(chosen, [("steps_bert", measure)])
    if chosen.memory:
        names = PEERS if library_absence("transformers", chosen.device) is None else ()
        print(peak.memory_table(__spec__.name, chosen.quick, ("ours", *names)))
    return code


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_to(parser)
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each, in new processes")
    return parser


if __name__ == "__main__":
    sys.exit(command.guarded(run, arguments().parse_args()))
