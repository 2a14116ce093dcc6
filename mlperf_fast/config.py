"""A run's configuration: frozen dataclasses, presets that return them, and `--set key=value` on top.

A workload's `presets.py` extends `RunConfig` with its own fields and nested dataclasses. A preset is a function without
arguments that returns a whole configuration; a variant calls another preset and `dataclasses.replace`s fields.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from mlperf_fast.errors import UserError

Config = TypeVar("Config", bound="RunConfig")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What every workload's run has. Steps count from 1; batch sizes are global, over all ranks."""

    division: Literal["open", "closed"] = "open"
    is_demo: bool = False  # logged in submission_platform; a demo is never closed
    submission_org: str | None = None  # needed unless it is a demo
    submission_platform: str | None = None
    submission_status: Literal["onprem", "cloud", "preview", "research"] = "research"
    batch_size: int
    target: float  # of the benchmark's metric; the run ends when an evaluation reaches it
    max_epochs: int = 1
    seed: int | None = None  # None: drawn from the system's entropy, as the rules demand of closed runs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    cuda_graph: Literal["auto", "on", "off"] = "auto"  # capture the step: where it can be, always or not at all
    backend: str | None = None  # of every op; None: each op's fastest one that is there
    deterministic: bool = False
    threads: int | None = None  # None: torch's choice
    log_every: int = 100  # steps between progress lines: the only moments when the host waits for the device
    checkpoint_every: int = 0  # steps; 0: no checkpoints
    eval_async: bool = False  # evaluate a copy of the weights beside the training that goes on
    drop_caches: Literal["auto", "on", "off"] = "off"  # empty the page cache before the run: auto, where it is allowed


def from_preset(preset: Callable[[], Config], preset_name: str, sets: Iterable[str]) -> tuple[Config, dict[str, str]]:
    """The preset's configuration with `key=value` settings applied, and where each value came from.

    Origins are "default" (the dataclass's), "preset NAME" or "--set". Raises UserError for an unknown key (with the
    nearest name) and for a value of the wrong type.
    """
    config = preset()
    origins = {key: "default" if _is_default(config, key) else f"preset {preset_name}" for key in flatten(config)}
    for setting in sets:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting}: expected KEY=VALUE, e.g. --set batch_size=2048")
        config = set_value(config, key.strip(), text.strip())
        origins[key.strip()] = "--set"
    return config, origins


def set_value(config: Any, key: str, text: str) -> Any:
    """A copy of `config` with the dotted `key` set to `text`, read as the field's own type."""
    return _set(config, key, text, f"--set {key}={text}")


def _set(config: Any, key: str, text: str, setting: str) -> Any:
    head, _, rest = key.partition(".")
    names = [field.name for field in dataclasses.fields(config)]
    if head not in names:
        raise UserError(f"{setting}: there is no {head!r}{nearest(head, names)}")
    value = getattr(config, head)
    kind = typing.get_type_hints(type(config))[head]
    if dataclasses.is_dataclass(value):
        if not rest:
            fields = ", ".join(f"{head}.{field.name}" for field in dataclasses.fields(value))
            raise UserError(f"{setting}: {head} is a group; set one of {fields}")
        return dataclasses.replace(config, **{head: _set(value, rest, text, setting)})
    if rest:
        raise UserError(f"{setting}: {head} has no part called {rest!r}; it is one value")
    try:
        return dataclasses.replace(config, **{head: parse(text, kind)})
    except ValueError as error:
        raise UserError(f"{setting}: {error}") from None


def parse(text: str, kind: Any) -> Any:
    """`text` as the annotated type `kind`: int, float, bool, str, Literal, X | None or tuple[X, ...]."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"expected one of {', '.join(map(str, arguments))}{nearest(text, arguments)}")
        return text
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return parse(text, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple:
        return tuple(parse(part.strip(), arguments[0]) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"expected {'a whole number' if kind is int else 'a number'}") from None
    return text


def nearest(name: str, choices: Iterable[str]) -> str:
    """' (did you mean …?)' and the choices, to end an error message with."""
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(sorted(choices))}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} over nested dataclasses, in declaration order."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            values |= flatten(value, f"{prefix}{field.name}.")
        else:
            values[prefix + field.name] = value
    return values


def describe(config: RunConfig, origins: dict[str, str]) -> str:
    """The table of `--print-config`: each key, its value and where that came from."""
    rows = [(key, json.dumps(value), origins[key]) for key, value in flatten(config).items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Nested plain values, as saved in a run's config.json."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], values: dict[str, Any]) -> Config:
    """The inverse of `to_json` for the configuration class `kind`; UserError where keys are missing or unknown."""
    return _build(kind, values)


def _build(kind: Any, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise UserError(f"config.json holds unknown keys: {', '.join(sorted(unknown))}")
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"config.json does not fit {kind.__name__}: {error}") from None


def _is_default(config: Any, key: str) -> bool:
    head, _, rest = key.partition(".")
    if rest:
        return _is_default(getattr(config, head), rest)
    field = next(field for field in dataclasses.fields(config) if field.name == head)
    return field.default is not dataclasses.MISSING and field.default == getattr(config, head)
