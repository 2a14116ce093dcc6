"""Embedding tables: many tables in one buffer, looked up in one call, updated without a gradient tensor.

Legend of shape suffixes: B samples, T tables of this process, D columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.ops.embedding_bag import embedding_bag, raise_if_bad_ids


class EmbeddingTables(torch.nn.Module):
    """The tables numbered `tables`, of `rows[t]` rows and `dim` columns each, stacked in one weight.

    The pooled output is a leaf of the autograd graph: after backward its `.grad` and the ids are all that an optimizer
    needs, so it alone writes the weight (`optim/sgd.py`). In the state_dict each table has its own entry
    `{number}.weight`, as in the reference's ModuleList of EmbeddingBags.
    """

    row_offsets: Tensor
    id_errors: Tensor  # where device kernels record the first bad id; see ops/embedding_bag.py
    ids: Tensor | None
    pooled: Tensor | None

    def __init__(self, tables: Sequence[int], rows: Sequence[int], dim: int, device: torch.device | str) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self.rows = tuple(rows[table] for table in tables)
        starts = [0]
        for count in self.rows:
            starts.append(starts[-1] + count)
        self.weight = torch.nn.Parameter(torch.empty(starts[-1], dim, device=device), requires_grad=False)
        # Always real, also under device="meta": 27 integers that shapes are read from.
        place = "cpu" if torch.device(device).type == "meta" else device
        self.register_buffer("row_offsets", torch.tensor(starts, dtype=torch.int64, device=place), persistent=False)
        self._starts = starts
        if self.weight.device.type == "cpu" and _C.memory_is_tuned:
            # Rows are read all over a table: with pages of 2 MiB, fewer address translations miss.
            _C.advise_huge_pages(self.weight.data_ptr(), self.weight.nbytes)
        errors = torch.zeros(3, dtype=torch.int64, device=place)
        self.register_buffer("id_errors", errors, persistent=False)
        self.forget()

    def views(self) -> list[Tensor]:
        """One [rows, D] view of the weight a table."""
        return [self.weight[first:last] for first, last in zip(self._starts, self._starts[1:], strict=False)]

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids [B, T] int32 or int64, table-local -> [B, T, D]."""
        pooled_BTD = embedding_bag(self.weight, self.row_offsets, ids_BT, errors=self.id_errors)
        if torch.is_grad_enabled():
            pooled_BTD.requires_grad_()
            self.ids, self.pooled = ids_BT, pooled_BTD
        return pooled_BTD

    def forget(self) -> None:
        """Lets go of the last batch's ids and output, once the update has used them."""
        self.ids = self.pooled = None

    def raise_if_bad_ids(self) -> None:
        """Raises for an id out of range that a device kernel recorded. Waits for the device."""
        raise_if_bad_ids(self.id_errors, self.row_offsets)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for table, view in zip(self.tables, self.views(), strict=True):
            destination[f"{prefix}{table}.weight"] = view if keep_vars else view.detach()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        for table, view in zip(self.tables, self.views(), strict=True):
            name = f"{prefix}{table}.weight"
            if name not in state_dict:
                missing.append(name)
            elif state_dict[name].shape != view.shape:
                errors.append(f"{name}: expected {tuple(view.shape)}, found {tuple(state_dict[name].shape)}")
            else:
                with torch.no_grad():
                    view.copy_(state_dict[name])
        known = {f"{prefix}{table}.weight" for table in self.tables}
        unexpected += [name for name in state_dict if name.startswith(prefix) and name not in known]
