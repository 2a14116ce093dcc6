"""BERT's model: the reference's sizes, names and initialisation; loss and gradients against plain PyTorch."""

import numpy as np
import pytest
import torch
from plain_bert import PlainBERT, padded

from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import use_backend
from mlperf_fast.optim.lamb import excluded_by_reference
from mlperf_fast.workloads.bert import checkpoint, data
from mlperf_fast.workloads.bert.model import BERT, NEVER, initialise, load_weights, parts, tensors
from mlperf_fast.workloads.bert.presets import closed
from mlperf_fast.workloads.bert.sequences import Sequences, starts_of

SIZES = {"words": 61, "hidden": 32, "layers": 3, "heads": 2, "intermediate": 48, "longest": 24}


def make_batch(lengths, seed=0, words=SIZES["words"], token_multiple=1, masked_multiple=1) -> data.Batch:
    rng = np.random.default_rng(seed)
    lengths = np.array(lengths)
    masked = np.maximum(1, lengths // 5)
    drawn = [np.sort(rng.choice(n, m, replace=False)) for n, m in zip(lengths, masked, strict=True)]
    made = Sequences(
        tokens=rng.integers(words, size=lengths.sum()).astype(np.int16),
        starts=starts_of(lengths),
        first=np.maximum(1, lengths // 2).astype(np.int16),
        positions=np.concatenate(drawn),
        labels=rng.integers(words, size=masked.sum()).astype(np.int16),
        mask_starts=starts_of(masked),
        random_next=rng.integers(2, size=len(lengths)).astype(np.int8),
    )  # fmt: skip
    return data.packed(made, token_multiple, masked_multiple, torch.device("cpu"))


def make_net(dropout=0.0, seed=1, **changes) -> BERT:
    net = BERT(**{**SIZES, **changes}, dropout=dropout, seed=seed)
    initialise(net, seed, std=0.2)
    with torch.no_grad():
        for name, view in tensors(net).items():  # biases and norms other than 0 and 1, or their mistakes wouldn't show
            if view.dim() == 1:
                view.add_(0.1 * torch.randn(view.shape, generator=torch.Generator().manual_seed(len(name))))
    return net


def twin_of(net: BERT) -> PlainBERT:
    twin = PlainBERT(*SIZES.values()).double()
    state = {name: tensor for name, tensor in net.state_dict().items() if name != "dropout_state"}
    assert set(state) == set(twin.state_dict()), "the names are Hugging Face's"
    twin.load_state_dict(state)
    return twin


def gradients(net: BERT) -> dict[str, torch.Tensor]:
    """By Hugging Face's name, cut like the weights."""
    with torch.no_grad():
        copy = make_net()
        for mine, theirs in zip(copy.parameters(), net.parameters(), strict=True):
            mine.data = theirs.grad.clone()
        return {name: view.clone() for name, view in tensors(copy).items()}


def test_the_full_size_has_the_reference_s_tensors_and_parameters():
    m = closed().model
    net = BERT(30522, m.hidden, m.layers, m.heads, m.intermediate, 512, device="meta")
    found = tensors(net)
    assert sum(view.numel() for view in found.values()) == 336_226_108
    assert {name: tuple(view.shape) for name, view in found.items()} == checkpoint.shapes(1024, 24, 4096, 30522)
    assert len(found) == 398


@pytest.mark.parametrize("backend", ["ref", "cpp"])
@pytest.mark.parametrize("multiples", [(1, 1), (16, 8)])
def test_loss_and_gradients_are_a_plain_padded_model_s(backend, multiples):
    net = make_net()
    twin = twin_of(net)
    batch = make_batch([24, 1, 7, 24, 13, 2], token_multiple=multiples[0], masked_multiple=multiples[1])
    expected = twin(*padded(batch))
    expected.backward()
    if backend == "ref":
        net.double()
    with use_backend(backend):
        loss = net(batch)
        loss.backward()
    tolerance = 1e-6 if backend == "ref" else 2e-5  # the loss is float32 in both
    assert abs(float(loss.detach()) - float(expected.detach())) < 1e-5  # our losses are float32
    mine = gradients(net)
    largest = max(float(parameter.grad.abs().max()) for parameter in twin.parameters())
    for name, parameter in twin.named_parameters():
        # A key's bias adds the same to all scores of a query: its gradient is 0, and what is found is rounding.
        scale = max(float(parameter.grad.abs().max()), 1e-2 * largest)
        assert float((mine[name] - parameter.grad).abs().max()) <= tolerance * scale, name


def test_correct_counts_what_the_plain_model_predicts():
    net = make_net()
    twin = twin_of(net)
    batch = make_batch([24, 1, 7, 24, 13, 2], masked_multiple=8)
    ids, segments, mask, labels, _ = padded(batch)
    with torch.no_grad():
        predicted = twin.word_logits(twin.encode(ids, segments, mask)).argmax(2)
    net.eval()
    predicted[0, 0] = -2  # the labels of a few, so that the count is no 0
    wanted = labels >= 0
    flat = predicted[wanted]
    aimed = batch._replace(labels=batch.labels.clone())
    aimed.labels[: len(flat) // 2] = flat[: len(flat) // 2].int()
    right = int((aimed.labels[: len(flat)] == flat).sum())
    assert right >= len(flat) // 2
    with torch.no_grad():
        assert int(net.correct(aimed)) == right


def test_words_that_fill_the_table_up_are_never_predicted_and_never_learn():
    net = make_net()
    batch = make_batch([24, 12])
    net(batch).backward()
    assert net.word_embeddings.shape[0] == 64
    for gradient in (net.word_embeddings.grad, net.word_bias.grad):
        assert float(gradient[61:].abs().max()) < 1e-37, "at most float's smallest: exp of -10,000 on some backends"
    assert (net.word_bias[61:] == NEVER).all()


def test_dropout_differs_from_step_to_step_and_repeats_with_its_state():
    net = make_net(dropout=0.1)
    batch = make_batch([24, 12, 20])
    first = float(net(batch))
    second = float(net(batch))
    assert first != second
    net.dropout_state[1] = 0
    assert float(net(batch)) == first
    net.eval()
    assert float(net(batch)) == float(net(batch))


def test_a_state_dict_round_trip_and_its_faults():
    net, other = make_net(seed=1), make_net(seed=2)
    other.load_state_dict(net.state_dict())
    batch = make_batch([9, 24])
    assert float(net(batch)) == float(other(batch))
    state = net.state_dict()
    del state["cls.predictions.bias"]
    with pytest.raises(UserError, match=r"cls\.predictions\.bias"):
        other.load_state_dict(state)
    with pytest.raises(UserError, match=r"query\.weight"):
        make_net(hidden=64).load_state_dict({**net.state_dict(), **{
            name: view for name, view in make_net(hidden=64).state_dict().items() if "query.weight" not in name
        }})  # fmt: skip


def test_weights_come_from_a_checkpoint(tmp_path):
    net, other = make_net(seed=1), make_net(seed=2)
    expected = checkpoint.shapes(32, 3, 48, 61, 24)
    checkpoint.save(tmp_path / "w.safetensors", tensors(net), "a test")
    load_weights(other, checkpoint.load(tmp_path / "w.safetensors", expected))
    batch = make_batch([9, 24])
    assert float(net(batch)) == float(other(batch))


def test_initial_values():
    net = BERT(**{**SIZES, "words": 4001, "hidden": 64})
    initialise(net, 3)
    table = net.word_embeddings[:4001]
    assert float(table.abs().max()) <= 0.04
    assert abs(float(table.std()) / 0.02 - 0.8796) < 0.01  # of a normal distribution cut at two deviations
    for name, view in tensors(net).items():
        if name.endswith("bias"):
            assert not view.any(), name
        elif "LayerNorm" in name:
            assert (view == 1).all(), name
    again = BERT(**{**SIZES, "words": 4001, "hidden": 64})
    initialise(again, 3)
    assert torch.equal(net.word_embeddings, again.word_embeddings)


def test_lamb_treats_each_of_the_reference_s_tensors_by_itself():
    net = make_net()
    assert sum(parts(name) for name, _ in net.named_parameters()) == len(tensors(net))
    excluded = sum(parts(name) for name, _ in net.named_parameters() if excluded_by_reference(name))
    assert excluded == sum("bias" in name or "LayerNorm" in name for name in tensors(net))
    assert not excluded_by_reference("word_embeddings")
