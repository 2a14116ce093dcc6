"""BERT's initial weights: from TensorFlow's and PyTorch's files to ours, and what is said of wrong ones."""

import hashlib
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import tf_bundle
import torch
from bert_weights import (
    DECODER,
    DECODER_BIAS,
    HIDDEN,
    QUERY,
    SMALL,
    WORD_BIAS,
    WORDS,
    WORDS_COUNT,
    random_weights,
    reference,
)

pytest.importorskip("safetensors", reason="needs safetensors: pip install 'mlperf_fast[bert]'")

import safetensors.torch

from mlperf_fast import tensor_names
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import checkpoint
from mlperf_fast.workloads.bert.checkpoint import convert, load, reference_names, shapes, torch_name


def check_converted(source, out, weights, expected=SMALL):
    said = []
    convert(source, out, expected, said.append)
    read = load(out, expected)
    assert list(read) == list(expected)
    for name, values in read.items():
        assert values.dtype == torch.float32
        assert torch.equal(values, weights[name])
    return said


def refusal(source, tmp_path, expected=SMALL):
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "out.safetensors", expected, print)
    assert not (tmp_path / "out.safetensors").exists()
    assert str(error.value).startswith(str(source))
    return str(error.value)


# Names and shapes -----------------------------------------------------------------------------------------------------


def test_berts_tensors():
    large = shapes(hidden=1024, layers=24, intermediate=4096, vocab=30522)
    assert reference_names() == tensor_names.bert()
    assert list(large) == [torch_name(name) for name in reference_names()]
    assert len(large) == 398
    assert sum(math.prod(shape) for shape in large.values()) == 336_226_108


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("bert/embeddings/word_embeddings", WORDS),
        ("bert/embeddings/token_type_embeddings", "bert.embeddings.token_type_embeddings.weight"),
        ("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert/encoder/layer_17/attention/self/query/kernel", "bert.encoder.layer.17.attention.self.query.weight"),
        (
            "bert/encoder/layer_0/attention/output/LayerNorm/beta",
            "bert.encoder.layer.0.attention.output.LayerNorm.bias",
        ),
        ("bert/encoder/layer_0/intermediate/dense/bias", "bert.encoder.layer.0.intermediate.dense.bias"),
        ("bert/pooler/dense/kernel", "bert.pooler.dense.weight"),
        ("cls/predictions/output_bias", WORD_BIAS),
        ("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight"),
        ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
        ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias"),
    ],
)
def test_hugging_faces_names(name, torchs):
    assert torch_name(name) == torchs


# From TensorFlow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [(), ("LAMB", "LAMB_1"), ("adam_m", "adam_v", "GradientAccumulator")])
@pytest.mark.parametrize("named", ["model.ckpt-28252", "model.ckpt-28252.index", "model.ckpt-28252.meta", "."])
def test_a_tensorflow_checkpoint(tmp_path, named, slots):
    weights = random_weights()
    (tmp_path / "tf1_ckpt").mkdir()
    tf_bundle.write(tmp_path / "tf1_ckpt" / "model.ckpt-28252", reference(weights, slots), compression=1, shards=2)
    said = check_converted(tmp_path / "tf1_ckpt" / named, tmp_path / "out.safetensors", weights)
    count = sum(math.prod(shape) for shape in SMALL.values())
    assert f"{count:,} weights in {len(SMALL)} tensors" in said[0]
    assert said[1:] == ["checkpoint: not the benchmark's, which a closed run needs"]


def test_the_benchmarks_own_checkpoint_is_known_by_its_index(tmp_path, monkeypatch):
    tf_bundle.write(tmp_path / "m", reference(random_weights()))
    md5 = hashlib.md5((tmp_path / "m.index").read_bytes()).hexdigest()
    monkeypatch.setattr(checkpoint, "BENCHMARK_INDEX_MD5", md5)
    said = []
    assert convert(tmp_path / "m", tmp_path / "out.safetensors", SMALL, said.append) is True
    assert said[1:] == ["checkpoint: the benchmark's own"]
    torch.save(random_weights(), tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", tmp_path / "out.safetensors", SMALL, said.append) is False
    assert "only the TensorFlow form has a published checksum" in said[-1]


def with_change(**changes):
    """A TensorFlow checkpoint's arrays with some of them other, or left out where None."""
    found = reference(random_weights(), slots=())
    for name, value in changes.items():
        if value is None:
            del found[name]
        else:
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bert/pooler/dense/kernel": None}, r"46 tensors\. 1 missing: bert\.pooler\.dense\.weight"),
        ({"bert/extra/kernel": np.zeros((2, 3), "f4")}, r"1 not the model's: bert\.extra\.weight"),
        ({"bert/pooler/dense/gamma": np.zeros(8, "f4")}, r"1 not the model's: bert/pooler/dense/kernel"),
        (
            {"bert/encoder/layer_1/output/dense/kernel": np.zeros((8, 16), "f4")},
            r"1 of another shape: bert\.encoder\.layer\.1\.output\.dense\.weight \[16, 8\] instead of \[8, 16\]",
        ),
        ({"bert/pooler/dense/kernel": np.zeros(8, "f4")}, r"pooler\.dense\.weight \[8\] instead of \[8, 8\]"),
        ({"cls/predictions/output_bias": np.zeros(25, "f4")}, r"cls\.predictions\.bias \[25\] instead of \[24\]"),
        (
            {"bert/embeddings/word_embeddings": np.zeros((30, 8), "f4")},
            "a vocabulary of 30 words, the model one of 24: they don't belong together",
        ),
        ({"bert/embeddings/word_embeddings": np.float32(0)}, r"word_embeddings\.weight \[\] instead of \[24, 8\]"),
        ({"bert/pooler/dense/bias": np.zeros(8, "f2")}, "bert/pooler/dense/bias is of type float16; weights must be"),
        (
            {"bert/pooler/dense/bias": np.full(8, np.nan, "f4")},
            r"bert\.pooler\.dense\.bias holds values that aren't fin",
        ),
        (
            {"bert/pooler/dense/bias": np.array([0] * 7 + [np.inf], "f4")},
            r"pooler\.dense\.bias holds values that aren't",
        ),
        (
            {"model/pooler/kernel/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(1, "f4")},
            r"a checkpoint of TensorFlow 2, which .* model\.ckpt-28252 in tf1_ckpt",
        ),
    ],
)
def test_a_wrong_tensorflow_checkpoint(tmp_path, changes, message):
    tf_bundle.write(tmp_path / "m", with_change(**changes))
    with pytest.raises(UserError, match=rf"m(\.data-.*)?(:| has) .*{message}"):
        convert(tmp_path / "m", tmp_path / "out.safetensors", SMALL, print)
    assert not (tmp_path / "out.safetensors").exists()


def test_many_faults_are_counted_and_the_first_named(tmp_path):
    tf_bundle.write(tmp_path / "m", reference(random_weights(), slots=()))
    more = shapes(hidden=HIDDEN, layers=3, intermediate=16, vocab=WORDS_COUNT, positions=12)
    message = refusal(tmp_path / "m", tmp_path, more)
    first = ", ".join(f"bert.encoder.layer.2.attention.self.{part}" for part in ("query.weight", "query.bias"))
    assert f"16 missing: {first}, bert.encoder.layer.2.attention.self.key.weight, …; 1 of another shape: " in message
    assert "position_embeddings.weight [10, 8] instead of [12, 8]" in message


def test_a_folder_must_hold_one(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    assert "holds no checkpoint: name the file" in refusal(folder, tmp_path)
    for step in (1, 2):
        tf_bundle.write(folder / f"m-{step}", reference(random_weights(), slots=()))
    assert "several checkpoints (m-1.index, m-2.index): leave the one" in refusal(folder, tmp_path)
    missing = refusal(tmp_path / "x.ckpt", tmp_path)
    assert "there is no such file, and no TensorFlow checkpoint x.ckpt.index" in missing


# From PyTorch ---------------------------------------------------------------------------------------------------------


def padded(weights, words=32):
    """As NVIDIA's: empty words behind the vocabulary, the decoder saved a second time."""
    table = torch.zeros(words, HIDDEN)
    table[:WORDS_COUNT] = weights[WORDS]
    bias = torch.zeros(words)
    bias[:WORDS_COUNT] = weights[WORD_BIAS]
    return {**weights, WORDS: table, WORD_BIAS: bias, DECODER: table}


def hugging_faces(weights):
    position_ids = {"bert.embeddings.position_ids": torch.arange(10)[None]}
    return {**position_ids, **weights, DECODER: weights[WORDS], DECODER_BIAS: weights[WORD_BIAS]}


@pytest.mark.parametrize("form", [dict, padded, hugging_faces])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pytorch_checkpoint(tmp_path, form, wrapped, zipped):
    weights = random_weights()
    state = form(weights)
    path = tmp_path / "model.pt"
    torch.save({"model": state} if wrapped else state, path, _use_new_zipfile_serialization=zipped)
    said = check_converted(path, tmp_path / "out.safetensors", weights)
    assert (said[0] == "model.pt: of 32 words the last 8 are empty: left out") == (form is padded)


def test_hugging_faces_safetensors(tmp_path):
    weights = random_weights()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(weights, path)
    check_converted(path, tmp_path / "out.safetensors", weights)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "out.safetensors").unlink()
    assert "can't be read: " in refusal(path, tmp_path)


def changed(state, name, place, value):
    """With another value in a tensor, and so in what shares its memory; `{name}!`: in that alone."""
    if name.endswith("!"):
        name = name[:-1]
        state = {**state, name: state[name].clone()}
    else:
        twins = [other for other, values in state.items() if values is state[name]]
        state = {**state, **dict.fromkeys(twins, state[name].clone())}
    state[name][place] = value
    return state


ODD = random_weights()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(padded(ODD), WORDS, (31, 7), 0.01), "a vocabulary of 32 words, the model one of 24"),
        (changed(padded(ODD), WORDS, (24, 0), math.nan), "a vocabulary of 32 words, the model one of 24"),
        (changed(padded(ODD), WORD_BIAS, 25, -100.0), r"cls\.predictions\.bias \[32\] instead of \[24\]"),
        (changed(padded(ODD), f"{DECODER}!", (31, 7), 0.01), f"{DECODER} isn't {WORDS}, as it is in BERT"),
        (changed(padded(ODD), f"{DECODER}!", (0, 0), 0.01), f"{DECODER} isn't {WORDS}, as it is in BERT"),
        (
            changed(hugging_faces(ODD), f"{DECODER_BIAS}!", 3, 0.01),
            f"{DECODER_BIAS} isn't {WORD_BIAS}, as it is in BERT",
        ),
        ({**ODD, DECODER: ODD[WORDS].double()}, f"{DECODER} isn't {WORDS}, as it is in BERT"),
        ({**ODD, DECODER: ODD[WORDS][:5]}, f"{DECODER} isn't {WORDS}, as it is in BERT"),
        ({DECODER: ODD[WORDS]}, rf"46 missing: {WORDS}, .*, …; 1 not the model's: {DECODER}"),
        ({**ODD, WORDS: torch.tensor(1.0)}, r"word_embeddings\.weight \[\] instead of \[24, 8\]"),
        (
            {**ODD, f"{QUERY}.weight": ODD[f"{QUERY}.weight"].half()},
            "query.weight is of type float16; weights must be fl",
        ),
        (changed(ODD, f"{QUERY}.bias", 1, -math.inf), "query.bias holds values that aren't finite"),
        (changed(hugging_faces(ODD), WORDS, (3, 4), math.nan), f"{WORDS} holds values that aren't finite"),
        ({"module." + name: values for name, values in ODD.items()}, "46 missing: .*; 46 not the model's: module.bert"),
        ({**ODD, "step": 7, "lr": 0.1}, "a state_dict of tensors is expected, but it holds step, lr"),
        ({**ODD, 1: torch.eye(3).to_sparse()}, "a state_dict of tensors is expected, but it holds 1"),
        ([1, 2], "a state_dict is expected, but it holds a list"),
        ({"model": 5}, "a state_dict of tensors is expected, but it holds model"),
    ],
)
def test_a_wrong_pytorch_checkpoint(tmp_path, state, message):
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(UserError, match=rf"m\.pt(:| has) .*{message}"):
        convert(tmp_path / "m.pt", tmp_path / "out.safetensors", SMALL, print)
    assert not (tmp_path / "out.safetensors").exists()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harmful()}, tmp_path / "m.pt")
    assert "can't be read: a file of torch.save with nothing but tensors is expected" in refusal(
        tmp_path / "m.pt", tmp_path
    )
    assert not Path("harm").exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_pytorch_files(tmp_path, zipped):
    torch.save(random_weights(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    for content in (
        b"",
        b"PK\x03\x04",
        b"\x80",
        random.Random(0).randbytes(500),
        whole[:100],
        whole[:-100],
        whole[100:],
    ):
        (tmp_path / "m.pt").write_bytes(content)
        assert "can't be read: a file of torch.save" in refusal(tmp_path / "m.pt", tmp_path)
