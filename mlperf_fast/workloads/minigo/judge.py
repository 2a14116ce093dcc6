"""Who answers the search's leaves: a network, or nobody but chance.

judge = by_network(Inference(net))
read(search, judge)                    # until all visits that search.start() asked for were made
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.search import Leaves, Search

# Policies float32 [L, size * size + 1] and Black's values [L] of the leaves that the search waits for.
Judge = Callable[[Search, Leaves], tuple[Tensor, Tensor]]


def by_network(inference: Inference) -> Judge:
    return lambda search, leaves: inference(leaves.planes)


def by_playouts(search: Search, leaves: Leaves) -> tuple[Tensor, Tensor]:
    """No opinion on moves; the value is the result of one random game from there. So the search is a plain tree search
    by random games, whose strength is the number of its readouts: an opponent that no training changes."""
    moves = search.games.size**2 + 1
    return torch.full((len(leaves), moves), 1 / moves), search.play_out()


def read(search: Search, judge: Judge) -> None:
    """Makes all visits that search.start() asked for."""
    while len(leaves := search.leaves()):
        search.take(*judge(search, leaves))
