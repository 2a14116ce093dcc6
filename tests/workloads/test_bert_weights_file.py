"""The file that BERT's initial weights are kept in: whole or not there, and every damage to it is noticed."""

import math
import os
import random
import struct
import subprocess
import sys
import textwrap
import time

import pytest
import tf_bundle
import torch
from bert_weights import HIDDEN, LAYERS, SMALL, WORD_BIAS, WORDS_COUNT, random_weights, reference

pytest.importorskip("safetensors", reason="needs safetensors: pip install 'mlperf_fast[bert]'")

import safetensors.torch

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert.checkpoint import convert, load, save, shapes


def test_our_file_is_safetensors_readable_by_all(tmp_path):
    weights, path = random_weights(), tmp_path / "w.safetensors"
    save(path, weights, "a test")
    read = safetensors.torch.load_file(path)
    assert {name: values.tolist() for name, values in read.items()} == {n: v.tolist() for n, v in weights.items()}
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["source"] == "a test"


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_views_and_devices_are_saved_as_they_look(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4).requires_grad_()
    save(tmp_path / "w", {"a": whole.T, "b": whole[1:, 2]}, "a test")
    read = load(tmp_path / "w", {"a": (4, 3), "b": (2,)})
    assert read["a"].tolist() == whole.T.tolist()
    assert read["b"].tolist() == [6, 10]


def test_every_damage_to_our_file_is_noticed(tmp_path):
    weights, path = random_weights(), tmp_path / "w.safetensors"
    save(path, weights, "")
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 211), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"w\.safetensors"):
            load(path, SMALL)
    rng = random.Random(0)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for at in [rng.randrange(header) for _ in range(300)] + [rng.randrange(header, len(whole)) for _ in range(300)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read = load(path, SMALL)
        except UserError as error:
            assert "w.safetensors" in str(error)  # noqa: PT017  both ends are right in the header
            continue
        assert at < header, at
        assert all(torch.equal(read[name], weights[name]) for name in SMALL)


def test_load_takes_only_the_models_own_file(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"w\.safetensors can't be read: No such file"):
        load(path, SMALL)
    safetensors.torch.save_file(random_weights(), path)
    with pytest.raises(UserError, match="has no checksums, so another program wrote it: `mlperf-fast prepare`"):
        load(path, SMALL)
    save(path, random_weights(), "a test")
    with pytest.raises(UserError, match="a vocabulary of 24 words, the model one of 30,522"):
        load(path, shapes(hidden=HIDDEN, layers=LAYERS, intermediate=16, vocab=30522, positions=10))
    with pytest.raises(
        UserError, match=r"6 of another shape: \S*0\.intermediate\.dense\.weight \[16, 8\] instead of \[32, 8\]"
    ):
        load(path, shapes(hidden=HIDDEN, layers=LAYERS, intermediate=32, vocab=WORDS_COUNT, positions=10))
    with pytest.raises(UserError, match=r"16 not the model's: bert\.encoder\.layer\.1"):
        load(path, shapes(hidden=HIDDEN, layers=1, intermediate=16, vocab=WORDS_COUNT, positions=10))


def test_infinite_weights_are_not_even_saved(tmp_path):
    weights = random_weights()
    weights[WORD_BIAS][3] = math.inf
    with pytest.raises(UserError, match=r"phase 1: cls\.predictions\.bias holds values that aren't finite"):
        save(tmp_path / "w", weights, "phase 1")
    assert not list(tmp_path.iterdir())


# In a process of its own ----------------------------------------------------------------------------------------------


def child(code, *arguments):
    prelude = """
        import resource, sys
        from pathlib import Path
        from mlperf_fast.workloads.bert.checkpoint import convert, load, save, shapes
        from mlperf_fast.errors import UserError
        folder = Path(sys.argv[1])
        expected = shapes(*map(int, sys.argv[2:]))
        out = folder / "out.safetensors"
    """
    return [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *map(str, arguments)]


MEDIUM = (256, 2, 1024, 20_000, 16)  # 28 MB


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    expected = shapes(*MEDIUM)
    both = [random_weights(expected, seed) for seed in (1, 2)]
    for number, weights in enumerate(both):
        torch.save(weights, tmp_path / f"{number}.pt")
    out, partial = tmp_path / "out.safetensors", tmp_path / "out.safetensors.new"
    endless = """
        while True:
            for number in (0, 1):
                convert(folder / f"{number}.pt", out, expected, lambda said: None)
    """
    within = 0
    for _ in range(5):
        process = subprocess.Popen(child(endless, tmp_path, *MEDIUM))
        try:
            deadline = time.monotonic() + 60
            while not (out.exists() and partial.exists()):
                assert process.poll() is None
                assert time.monotonic() < deadline
        finally:
            process.kill()
            process.wait()
        within += partial.exists()
        found = load(out, expected)
        assert any(all(torch.equal(found[name], weights[name]) for name in expected) for weights in both)
        if within:
            break
    assert within, "it was never killed while it wrote"
    convert(tmp_path / "0.pt", out, expected, print)
    assert not partial.exists()


def test_a_full_disk_leaves_no_file(tmp_path):
    torch.save(random_weights(shapes(*MEDIUM)), tmp_path / "m.pt")
    code = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            convert(folder / "m.pt", out, expected, print)
        except UserError as error:
            sys.exit(str(error))
    """
    run = subprocess.run(child(code, tmp_path, *MEDIUM), capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == f"{tmp_path}/out.safetensors can't be written: File too large"
    assert run.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def big_tensorflow(tmp_path):
    """Moments of 1 GiB each, which the file holds as a hole: their checksums are wrong, should anyone read them."""
    weights = random_weights()
    tf_bundle.write(tmp_path / "m", reference(weights, slots=()))
    data = tmp_path / "m.data-00000-of-00001"
    size = data.stat().st_size
    pairs = [(b"", tf_bundle.header())]
    rows, at = 1 << 28, 0
    for name, values in sorted(reference(weights, slots=()).items()):
        content = values.tobytes()
        made = tf_bundle.entry(values.dtype.name, values.shape, at, len(content), tf_bundle.checksum(content))
        pairs.append((name.encode(), made))
        at += len(content)
    for i, slot in enumerate(("LAMB", "LAMB_1")):
        made = tf_bundle.entry("float32", (rows,), size + 4 * rows * i, 4 * rows, 0)
        pairs.append((f"bert/embeddings/word_embeddings/{slot}".encode(), made))
    (tmp_path / "m.index").write_bytes(tf_bundle.table(sorted(pairs)))
    with open(data, "r+b") as file:
        file.truncate(size + 8 * rows)
    return tmp_path / "m"


def big_pytorch(tmp_path):
    optimizer = {"exp_avg": torch.zeros(25 << 20), "exp_avg_sq": torch.zeros(25 << 20)}
    torch.save({"model": random_weights(), "optimizer": optimizer}, tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("make", [big_tensorflow, big_pytorch])
def test_moments_are_not_read(tmp_path, make):
    """200 MB and more of the optimizer's; converting takes less than 100 MB on top of what torch does."""
    make(tmp_path)
    code = """
        def peak():  # not getrusage's, which starts with the peak of the process that forked this one
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        before = peak()
        convert(folder / "m", out, expected, lambda said: None)
        print(peak() - before)
    """
    sizes = (HIDDEN, LAYERS, 16, WORDS_COUNT, 10)
    run = subprocess.run(child(code, tmp_path, *sizes), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 100_000  # KiB
    assert load(tmp_path / "out.safetensors", SMALL).keys() == SMALL.keys()
