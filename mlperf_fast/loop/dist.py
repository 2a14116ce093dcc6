"""Which process this is, and the few exchanges between processes. All of it is torch.distributed."""

import datetime
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as torch_dist

from mlperf_fast.errors import UserError

# (rank, world size, local rank) as each launcher names them: torchrun, srun, Open MPI's mpirun.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes, and the device it computes on."""

    rank: int
    world: int
    device: torch.device
    group: torch_dist.ProcessGroup | None = None  # in which they exchange; None: the default one

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def start(device: str) -> Ranks:
    """Joins the process group that the launcher's environment names; alone where there is none.

    `device`: "cpu", "cuda", or "auto" for a GPU where there is one. UserError where "cuda" is asked for and absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here; `mlperf-fast env` says what there is")
    rank, world, local_rank = from_environment()
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        place = torch.device("cuda", local_rank)
    else:
        place = torch.device("cpu")
    if world > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise UserError(f"{world} processes were launched, but {name} is not set; torchrun sets it, srun and "
                                "mpirun need it exported: the first node's address and a free port")  # fmt: skip
        backend = "nccl" if device == "cuda" else "gloo"
        timeout = datetime.timedelta(minutes=10)
        torch_dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)
    return Ranks(rank, world, place)


def apart(ranks: Ranks) -> Ranks:
    """The same processes in a group of their own, for another thread. Collective.

    It is gloo's on a GPU too: kernels of two NCCL groups can wait for each other for ever.
    """
    return replace(ranks, group=torch_dist.new_group(backend="gloo")) if ranks.world > 1 else ranks


def first_ones(ranks: Ranks, count: int) -> Ranks:
    """The first `count` processes in a group of their own, for those who are among them. Collective, over all."""
    if count == ranks.world:
        return ranks
    return replace(ranks, world=count, group=torch_dist.new_group(list(range(count))))


class Announcement:
    """What rank 0 says once, and `listeners` hear whenever they ask, without waiting. Made by all together."""

    def __init__(self, ranks: Ranks, listeners: Sequence[int]) -> None:
        # gloo's on a GPU too, where a kernel that waits would hold the device; a whole run may lie before the word.
        group = torch_dist.new_group([0, *listeners], backend="gloo", timeout=datetime.timedelta(days=365))
        self._group, self._word = group, torch.zeros(1)
        self._pending = self._broadcast() if ranks.rank in listeners else None

    def _broadcast(self) -> torch_dist.Work:
        pending = torch_dist.broadcast(self._word, src=0, group=self._group, async_op=True)
        assert pending is not None
        return pending

    def make(self) -> None:
        """Says it; on rank 0."""
        self._broadcast().wait()

    def came(self) -> bool:
        """Whether it was said; on the listeners. UserError where rank 0 is gone."""
        assert self._pending is not None
        if not self._pending.is_completed():
            return False
        try:
            self._pending.wait()
        except RuntimeError as error:
            raise UserError("rank 0 of this run ended early; what it printed says why") from error
        return True


def stop() -> None:
    """Leaves the process group, if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def from_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as the launcher says; (0, 1, 0) without one."""
    for names in _LAUNCHERS:
        values = [os.environ.get(name) for name in names]
        if all(value is not None for value in values):
            rank, world, local_rank = (int(value) for value in values if value is not None)
            if world > 1:
                return rank, world, local_rank
    return 0, 1, 0


def processes_per_node() -> int | None:
    """How many processes the launcher started on this node; None where it doesn't say."""
    world = from_environment()[1]
    if world == 1:
        return 1
    nodes = os.environ.get("SLURM_NNODES", "")
    for local in (os.environ.get("LOCAL_WORLD_SIZE", ""), os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")):
        if local.isdecimal():
            return int(local)
    return world // int(nodes) if nodes.isdecimal() and int(nodes) and world % int(nodes) == 0 else None


def barrier(ranks: Ranks) -> None:
    if ranks.world > 1:
        torch_dist.barrier(group=ranks.group)


def broadcast_object(ranks: Ranks, value):
    """Rank 0's `value` (plain Python data) on every rank."""
    if ranks.world == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, group=ranks.group)
    return box[0]


def average_gradients(ranks: Ranks, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all ranks: one exchange for all of them, in place, no host sync."""
    if ranks.world == 1:
        return
    gradients = [in_order(parameter.grad) for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch_dist.all_reduce(flat, group=ranks.group)
    flat /= ranks.world
    pieces = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])


def in_order(x: torch.Tensor) -> torch.Tensor:
    """A view whose dimensions are in the order of memory: of a tensor that is channels last, [N, H, W, C]."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x


def reduce_max(ranks: Ranks, value: torch.Tensor) -> None:
    """Replaces `value` by the largest one over all ranks, in place."""
    if ranks.world > 1:
        torch_dist.all_reduce(value, op=torch_dist.ReduceOp.MAX, group=ranks.group)


def mean_over_ranks(ranks: Ranks, value: torch.Tensor) -> float:
    """The mean of a 0-dim tensor over all ranks. The host waits for it: for log points only."""
    if ranks.world > 1:
        value = value.clone()
        torch_dist.all_reduce(value, group=ranks.group)
    return float(value) / ranks.world


def gather_rows(ranks: Ranks, rows: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's 1-D tensor on every rank, in rank order; lengths may differ."""
    if ranks.world == 1:
        return [rows]
    lengths = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(ranks.world)]
    torch_dist.all_gather(lengths, torch.tensor([rows.numel()], device=rows.device), group=ranks.group)
    longest = int(torch.stack(lengths).max())
    padded = torch.zeros(longest, dtype=rows.dtype, device=rows.device)
    padded[: rows.numel()] = rows
    gathered = [torch.empty_like(padded) for _ in range(ranks.world)]
    torch_dist.all_gather(gathered, padded, group=ranks.group)
    return [part[: int(length)] for part, length in zip(gathered, lengths, strict=True)]


def sum_over_ranks(ranks: Ranks, value: torch.Tensor) -> torch.Tensor:
    """`value` added up over all ranks, on each."""
    if ranks.world > 1:
        torch_dist.all_reduce(value, group=ranks.group)
    return value
