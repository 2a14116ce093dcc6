"""The weights that a run starts from: the reference's TensorFlow checkpoint, or a PyTorch one of NVIDIA's or Hugging
Face's, as one file that training reads (safetensors, float32, with a checksum of each tensor).

    bert/encoder/layer_0/attention/self/query/kernel    [in, out]    TensorFlow
    bert.encoder.layer.0.attention.self.query.weight    [out, in]    PyTorch, and our file

What belongs to the optimizer is left out: in the reference, too, its moments and steps start at zero.
Source: mlcommons/training, bert, README.md and run_pretraining.py; NVIDIA's modeling.py for what is padded and tied.
"""

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlperf_fast import tensor_names
from mlperf_fast.data.files import replaced
from mlperf_fast.data.tfrecord import masked_crc
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import tf_checkpoint

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Say = Callable[[str], None]

WORDS, WORD_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
# Second names under which PyTorch saves a tensor once more.
TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": WORD_BIAS}
NO_WEIGHT = "bert.embeddings.position_ids"  # 0, 1, 2 …, as older Hugging Face releases save it
# Parts of the names that only what belongs to the optimizer has.
OPTIMIZER = {
    "LAMB", "LAMB_1", "adam_m", "adam_v", "beta1_power", "beta2_power", "global_step", "GradientAccumulator"
}  # fmt: skip
# Of the benchmark's model.ckpt-28252.index. It holds the checksum of every tensor, so it stands for all 4 GB.
BENCHMARK_INDEX_MD5 = "f97de3ae180eb8d479555c939d50d048"
OBJECT_BASED = ".ATTRIBUTES/VARIABLE_VALUE"
PARTS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_weights": "weight", "output_bias": "bias"}


def reference_names(layers: int = 24) -> list[str]:
    """The reference's names, in the order of the model: 398 for BERT-large."""
    return tensor_names.bert(layers)


def torch_name(name: str) -> str:
    """Hugging Face's name of a tensor that has this one in the reference."""
    *path, last = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name).split("/")
    path += [last, "weight"] if last.endswith("_embeddings") else [PARTS.get(last, last)]
    return ".".join(path)


def shapes(
    hidden: int, layers: int, intermediate: int, vocab: int, positions: int = 512, types: int = 2
) -> dict[str, Shape]:
    """The tensors of a model by Hugging Face's name, in the order of `reference_names`; `vocab` words."""

    def dense(out: int, into: int) -> dict[str, Shape]:
        return {"weight": (out, into), "bias": (out,)}

    square = dense(hidden, hidden)
    norm: dict[str, Shape] = {"weight": (hidden,), "bias": (hidden,)}
    tables = {"word": vocab, "position": positions, "token_type": types}
    modules: dict[str, dict[str, Shape]] = {
        f"bert.embeddings.{kind}_embeddings": {"weight": (rows, hidden)} for kind, rows in tables.items()
    }
    modules["bert.embeddings.LayerNorm"] = norm
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        modules |= {f"{layer}.attention.self.{part}": square for part in ("query", "key", "value")}
        modules[f"{layer}.attention.output.dense"] = square
        modules[f"{layer}.attention.output.LayerNorm"] = norm
        modules[f"{layer}.intermediate.dense"] = dense(intermediate, hidden)
        modules[f"{layer}.output.dense"] = dense(hidden, intermediate)
        modules[f"{layer}.output.LayerNorm"] = norm
    modules["bert.pooler.dense"] = square
    modules["cls.predictions"] = {"bias": (vocab,)}
    modules["cls.predictions.transform.dense"] = square
    modules["cls.predictions.transform.LayerNorm"] = norm
    modules["cls.seq_relationship"] = dense(2, hidden)
    return {f"{module}.{part}": shape for module, parts in modules.items() for part, shape in parts.items()}


# From others' checkpoints ---------------------------------------------------------------------------------------------


def convert(source: Path, out_file: Path, expected: Shapes, progress: Say) -> bool:
    """Writes the checkpoint `source` as a file that `load` reads; whether it is known to be the benchmark's own.

    UserError says why it can't be this model's, or what is damaged.

    source: a TensorFlow checkpoint's name, or one of its files; a file of torch.save or of safetensors; or the folder
    that holds one of them. A kill at any moment leaves the old file, if any, or the new one whole.
    """
    if source.is_dir():
        found = find(source)
        if found is None:
            raise UserError(f"{source} holds no checkpoint: name the file")
        source = found
    prefix = tf_checkpoint.prefix_of(source)
    index, benchmarks = prefix.with_name(prefix.name + ".index"), False
    if index.exists():
        tensors = read_tf(prefix, expected)
        benchmarks = hashlib.md5(index.read_bytes()).hexdigest() == BENCHMARK_INDEX_MD5
    elif source.exists():
        tensors = read_pytorch(source, expected, progress)
    else:
        raise UserError(f"{source}: there is no such file, and no TensorFlow checkpoint {index.name}")
    save(out_file, tensors, str(source))
    count = sum(tensor.numel() for tensor in tensors.values())
    progress(f"{source.name}: {count:,} weights in {len(tensors)} tensors, now in {out_file}")
    if benchmarks:
        progress("checkpoint: the benchmark's own")
    elif index.exists():
        progress("checkpoint: not the benchmark's, which a closed run needs")
    else:
        progress("checkpoint: of the benchmark's, only the TensorFlow form has a published checksum to be known by")
    return benchmarks


def find(folder: Path) -> Path | None:
    """The checkpoint that lies in `folder`, None without one; UserError for several."""
    kinds = ("*.index", "*.pt", "*.bin", "*.safetensors")
    found = sorted(path for kind in kinds for path in folder.glob(kind))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise UserError(f"{folder} holds several checkpoints ({names}): leave the one to start from")
    return found[0] if found else None


def read_tf(path: Path, expected: Shapes) -> dict[str, Tensor]:
    """float32 tensors by Hugging Face's name of a TensorFlow checkpoint that saves variables by name."""
    index = tf_checkpoint.read_index(path)
    if any(name.endswith(OBJECT_BASED) for name in index):
        raise UserError(
            f"{path}: a checkpoint of TensorFlow 2, which names tensors by the objects of the program that wrote it. "
            "Use the benchmark's other one, model.ckpt-28252 in tf1_ckpt"
        )
    entries: dict[str, tf_checkpoint.Entry] = {}
    for name, entry in index.items():
        if not OPTIMIZER & set(name.split("/")):
            ours = torch_name(name)
            entries[name if ours in entries else ours] = entry
    kernel = {ours for ours, entry in entries.items() if entry.name.endswith("/kernel")}
    found = {ours: entry.shape[::-1] if ours in kernel else entry.shape for ours, entry in entries.items()}
    compare(path, found, expected)

    def tensor(ours: str) -> Tensor:
        values = tf_checkpoint.read_tensor(path, entries[ours])
        return torch.from_numpy(np.ascontiguousarray(values.T) if ours in kernel else values)

    return {ours: tensor(ours) for ours in expected}


def read_pytorch(path: Path, expected: Shapes, progress: Say) -> dict[str, Tensor]:
    """Tensors of a state_dict, by itself or under the key "model". Empty words behind the model's are cut off."""
    state = dict(read_state(path))
    state.pop(NO_WEIGHT, None)
    strange = [name for name, value in state.items() if not isinstance(value, Tensor) or value.layout != torch.strided]
    if strange:
        raise UserError(f"{path}: a state_dict of tensors is expected, but it holds {listed(strange)}")
    words, whole = expected[WORDS][0], rows(state.get(WORDS))
    for name in {WORDS, WORD_BIAS, *TIED} & state.keys():
        if rows(state[name]) > words and not state[name][words:].any():
            state[name] = state[name][:words]
    twins = {name: state.pop(name) for name, other in TIED.items() if name in state and other in state}
    compare(path, {name: tuple(value.shape) for name, value in state.items()}, expected)
    for name, twin in twins.items():
        if not same(twin, state[TIED[name]]):
            raise UserError(f"{path}: {name} isn't {TIED[name]}, as it is in BERT: another model's checkpoint")
    if whole > words:
        progress(f"{path.name}: of {whole:,} words the last {whole - words} are empty: left out")
    return {name: state[name].contiguous() for name in expected}


def rows(tensor: Tensor | None) -> int:
    return len(tensor) if tensor is not None and tensor.dim() else 0


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and np.array_equal(a.float().numpy(), b.float().numpy(), equal_nan=True)


def read_state(path: Path) -> Mapping[str, Any]:
    """The state_dict in a file, its tensors where they are on the disk where that is possible."""
    if path.suffix == ".safetensors":
        safetensors = import_safetensors()
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} can't be read: {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle may raise any
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} can't be read: a file of torch.save with nothing but tensors is expected. {what}"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: a state_dict is expected, but it holds a {type(state).__name__}")
    return state


# Our file -------------------------------------------------------------------------------------------------------------


def save(path: Path, tensors: Mapping[str, Tensor], source: str) -> None:
    """Writes float32 tensors, all at once; `source` says in the file where they are from.

    safetensors' own function renames a private file (mode 0600, not flushed) over the path, so we write the format:
    the header's size, the header in JSON, the tensors.
    """
    notes = {"format": "pt", "source": source}
    header: dict[str, Any] = {"__metadata__": notes}
    arrays, at = [], 0
    for name, tensor in tensors.items():
        require_finite(source, name, tensor)
        array = tensor.detach().cpu().contiguous().numpy()
        arrays.append(array)
        notes[name] = checksum(array)
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (at, at + array.nbytes)}
        at += array.nbytes
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)  # so that tensors are aligned
    try:
        with replaced(path) as file:
            file.write(struct.pack("<Q", len(content)) + content)
            for array in arrays:
                file.write(array.data)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None


def load(path: Path, expected: Shapes) -> dict[str, Tensor]:
    """The tensors of a file that `save` wrote, by name; UserError unless they are `expected`, whole and finite."""
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
            compare(path, found, expected)
            tensors = {name: file.get_tensor(name) for name in expected}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} can't be read: {error}. Prepare it again") from None
    if not expected.keys() <= notes.keys():
        raise UserError(f"{path} has no checksums, so another program wrote it: `mlperf-fast prepare` converts it")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or checksum(tensor.numpy()) != notes[name]:
            raise UserError(f"{path}: the checksum of {name} is wrong: a damaged file, prepare it again")
        require_finite(str(path), name, tensor)
    return tensors


def checksum(array: np.ndarray) -> str:
    """The metadata's value under the tensor's own name: CRC-32C, masked as in TFRecords."""
    return f"{masked_crc(array.reshape(-1).view(np.uint8).data):08x}"


def import_safetensors() -> Any:
    try:
        import safetensors
    except ImportError:
        raise UserError(
            "BERT's checkpoints need the package safetensors: install it with `pip install 'mlperf_fast[bert]'`"
        ) from None
    return safetensors


# What is wrong with them ----------------------------------------------------------------------------------------------


def compare(where: Path, found: Shapes, expected: Shapes) -> None:
    """UserError unless these are the model's tensors in name and shape; it names the first of each fault."""
    words, wanted = (sizes[WORDS][0] if sizes.get(WORDS) else 0 for sizes in (found, expected))
    if words and words != wanted:
        raise UserError(
            f"{where} has a vocabulary of {words:,} words, the model one of {wanted:,}: they don't belong together"
        )
    faults = {
        "missing": [name for name in expected if name not in found],
        "not the model's": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    said = [f"{len(names)} {what}: {listed(names)}" for what, names in faults.items() if names]
    if said:
        raise UserError(f"{where}: these aren't the model's {len(expected)} tensors. " + "; ".join(said))


def listed(names: Collection[str]) -> str:
    return ", ".join(map(str, list(names)[:3])) + (", …" if len(names) > 3 else "")


def require_finite(where: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise UserError(
            f"{where}: {name} is of type {str(tensor.dtype).removeprefix('torch.')}; weights must be float32"
        )
    if not torch.isfinite(tensor).all():
        raise UserError(f"{where}: {name} holds values that aren't finite: of a run that diverged, or damaged")
