"""NVIDIA DALI, where it is installed."""

from typing import Any

import torch

from mlperf_fast.errors import UserError

PACKAGES = {12: "nvidia-dali-cuda120", 13: "nvidia-dali-cuda130"}


def import_dali() -> Any:
    """The package nvidia.dali, with `fn` and `types` loaded; UserError that says which package to install."""
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise UserError(f"the reader `dali` needs NVIDIA DALI, which can't be imported ({error}): {how()}") from None
    return nvidia.dali


def how() -> str:
    """How to get the DALI that fits the CUDA of this torch."""
    version = torch.version.cuda
    if version is None:
        return (
            f"install it with `pip install {PACKAGES[13]}` (its CPU pipelines need no GPU; this torch is a CPU build), "
            "or choose the reader `workers`"
        )
    package = PACKAGES.get(int(version.split(".")[0]))
    if package is None:
        return f"there is none for this torch's CUDA {version}: choose the reader `workers`"
    return f"this torch is built for CUDA {version}: `pip install {package}`, or choose the reader `workers`"
