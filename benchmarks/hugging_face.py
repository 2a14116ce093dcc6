"""Hugging Face's classes, imported past what is in their way."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def classes(names: dict[str, str]) -> list[Any]:
    """Class by class from {its name: its module in transformers.models}.

    transformers looks for a package `kernels`, and would find this checkout's.
    """
    root, before = Path(__file__).parents[1], sys.path.copy()
    sys.path[:] = [entry for entry in before if Path(entry).resolve() != root]
    try:
        return [getattr(import_module(f"transformers.models.{module}"), name) for name, module in names.items()]
    finally:
        sys.path[:] = before
