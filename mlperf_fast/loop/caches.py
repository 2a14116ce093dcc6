"""Drops the page cache before a run, as the rules ask, and says truly whether that was done."""

import os
from pathlib import Path
from typing import Literal

import torch

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, from_environment, reduce_max

DROP = Path("/proc/sys/vm/drop_caches")  # Linux; only root may write it, and in most containers nobody


def drop_caches(wanted: Literal["auto", "on", "off"], ranks: Ranks) -> bool:
    """Empties the page cache of each machine of the run; whether all of them did. Collective.

    wanted: "off"; "auto", where it is allowed; "on", with a UserError where it isn't.
    """
    if wanted == "off":
        return False
    why = None
    if from_environment()[2] == 0:  # one process a machine
        try:
            os.sync()  # what isn't on the disk yet can't be dropped
            DROP.write_text("3\n")  # 3: pages, directory entries and inodes
        except OSError as error:
            why = error.strerror
    refused = torch.tensor(float(why is not None), device=ranks.device)
    reduce_max(ranks, refused)
    if refused and wanted == "on":
        raise UserError(f"drop_caches=on, but {DROP} can't be written ({why or 'on another machine'}): run as root, "
                        "outside of a container or in a privileged one; or set drop_caches=auto")  # fmt: skip
    return not refused
