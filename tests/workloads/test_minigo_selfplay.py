"""Self-play, its records, and what an iteration trains on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_minigo import settings

from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.workloads.minigo import records, selfplay, window, workers
from mlperf_fast.workloads.minigo.board import LEGAL, new_games, transform_planes, transform_policies
from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.model import DualNet, initialise, save
from mlperf_fast.workloads.minigo.presets import PRESETS
from mlperf_fast.workloads.minigo.selfplay import SelfPlay, bootstrap_rules

ALONE = Ranks(0, 1, torch.device("cpu"))


def config(*more, preset="demo"):
    return from_preset(PRESETS[preset], preset, [part for part in settings(*more) if part != "--set"])[0]


def network(cfg, seed=1):
    net = DualNet(cfg.size, cfg.model.width, cfg.model.blocks)
    initialise(net, seed)
    return net.eval()


def play(cfg, games, seed=1, rules=None, **options):
    player = SelfPlay(cfg, rules or cfg.play, Inference(network(cfg)), seed=seed, **options)
    found = []
    while len(found) < games:
        found += player.round(model=3)
    return found


def same(first, second):
    assert first.score == second.score
    for part in records.PARTS:
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))


@pytest.fixture(scope="module")
def played():
    return play(config(), 14)


def test_a_record_is_the_game_that_was_played(played):
    """Replayed by the engine: each move is legal, the score is the board's, the planes are those of full moves."""
    cfg = config()
    assert {record.model for record in played} == {3}
    for record in played:
        game, seen = new_games(1, 5), []
        for move in record.moves.tolist():
            seen.append(game.planes()[0].numpy())
            assert game.play([move]).tolist() == [LEGAL]
        assert game.facts().passes.tolist() == [2]
        assert record.score == float(game.scores(cfg.komi)[0])
        assert record.z == np.sign(record.score)
        kept = window.unpack(torch.from_numpy(record.planes), 5).numpy()
        places = [i for i, planes in enumerate(seen) if any(np.array_equal(planes, x) for x in kept)]
        assert len(kept) >= 1
        assert np.array_equal(kept[0], seen[0]), "a game's first move is read in full"
        assert len(places) >= len(kept) - 1  # passes at the end may repeat a position's planes
        np.testing.assert_allclose(record.pi.sum(1), 1, atol=1e-5)
        assert (np.abs(record.q) <= 1).all()


def test_about_a_quarter_of_the_moves_teach(played):
    moves, taught = sum(len(r.moves) for r in played), sum(len(r.planes) for r in played)
    assert 0.15 < taught / moves < 0.45
    rules = config("play.fast_share=0").play
    for record in play(config(), 6, rules=rules):
        automatic = len(record.moves) - len(record.planes)
        assert 0 <= automatic <= 2, "all but passes on a settled board"


def test_games_come_from_the_seed_alone():
    cfg = config("play.games=3")
    first = play(cfg, 3)
    for one, other in zip(first, play(cfg, 3), strict=True):
        same(one, other)
    assert any(len(a.moves) != len(b.moves) for a, b in zip(first, play(cfg, 3, seed=2), strict=False))
    assert any(len(a.moves) != len(b.moves) for a, b in zip(first, play(cfg, 3, first_id=99), strict=False))


def test_two_halves_play_the_games_of_one(monkeypatch):
    """As on a GPU: the answers to one half come while the other is read."""
    cfg = config("play.games=4")
    whole = {tuple(record.moves.tolist()) for record in play(cfg, 4)}
    player = SelfPlay(cfg, cfg.play, Inference(network(cfg)), seed=1)
    player.next_id, player.halves = 0, [selfplay.Half(cfg, cfg.play, n, 1) for n in (2, 2)]
    for half in player.halves:
        half.begin(torch.ones(2, dtype=torch.bool), player._ids)
        half.start(torch.ones(2, dtype=torch.bool))
    found = []
    while len(found) < 4:
        found += player.round(0)
    assert whole & {tuple(record.moves.tolist()) for record in found}


def test_who_is_lost_gives_up():
    cfg = config()
    rules = config("play.resign=0.01,0.02").play
    found = play(cfg, 12, rules=rules)
    resigned = [record for record in found if record.resigned]
    assert resigned
    for record in resigned:
        assert record.score in (1, -1)
        loser = 1 if len(record.moves) % 2 == 0 else -1  # whose turn it was
        assert record.score == -loser


def test_the_first_generation_fills_no_eye_and_passes_last():
    cfg = config()
    rules = bootstrap_rules(cfg.play)
    assert (rules.own_eyes, rules.prune, rules.fast_share, rules.cache_mb) == (False, False, 0, 0)
    assert rules.readouts == 80
    for record in play(cfg, 3, rules=replace(rules, readouts=8, games=3)):
        passes = record.moves == 25
        assert not passes[:10].any()


# Files -------------------------------------------------------------------------------------------------------------


def test_files_give_the_records_back(played, tmp_path):
    path = records.write(played, tmp_path / "3", "0-0-000000")
    assert path.name == f"0-0-000000.{len(played)}.npz"
    assert [p.name for p in (tmp_path / "3").iterdir()] == [path.name]
    again = records.read(path)
    for first, second in zip(played, again, strict=True):
        same(first, second)
        assert (first.size, first.model, first.resigned) == (second.size, second.model, second.resigned)
    assert records.count(tmp_path / "3") == len(played)
    assert records.count(tmp_path / "4") == 0


def test_damaged_files_are_named(played, tmp_path):
    path = records.write(played[:2], tmp_path, "0-0-000000")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:300] + b"\xff" * 40 + whole[340:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"000000\.2\.npz holds no games"):
            records.read(path)
    np.savez(path, size=np.array(5))
    with pytest.raises(UserError, match="it lacks examples"):
        records.read(path)
    with pytest.raises(UserError, match="there is no file"):
        records.read(tmp_path / "absent.1.npz")


def test_records_that_dont_fit_are_refused(played, tmp_path):
    path = records.write(played[:2], tmp_path, "0-0-000000")
    with np.load(path) as arrays:
        good = dict(arrays)
    for key, value, fault in (
        ("size", np.array(99), "its board has 99 lines"),
        ("pi", good["pi"][:-1], "pi has shape"),
        ("pi", np.full_like(good["pi"], np.nan), "no number"),
        ("lengths", -good["lengths"], "less than no moves"),
        ("q", np.array([object()], dtype=object), "holds no games"),
    ):
        np.savez(path, **(good | {key: value}))
        with pytest.raises(UserError, match=fault):
            records.read(path)


def test_a_half_written_file_is_nobodys(played, tmp_path):
    (tmp_path / "0-0-000001.partial").write_bytes(b"half")
    assert records.files(tmp_path) == []
    (tmp_path / "odd.npz").write_bytes(b"")
    with pytest.raises(UserError, match="isn't named as files of games are"):
        records.count(tmp_path)


# The window --------------------------------------------------------------------------------------------------------


def generation(folder, games, seed, size=5):
    records.write(games[: len(games) // 2], folder, "0-0-000000")
    records.write(games[len(games) // 2 :], folder, "0-1-000000")
    chosen = window.choose(folder, len(games) - 2, seed)
    return window.read_generation(folder, chosen, size)


def test_what_was_drawn_of_a_generation_holds(played, tmp_path):
    examples, games = generation(tmp_path / "0", played, 1)
    assert len(games) == len(played) - 2
    assert len(examples.z) == sum(len(game.planes) for game in games)
    records.write(played[:3], tmp_path / "0", "0-2-000000")  # finished later
    chosen = window.choose(tmp_path / "0", len(played) - 2, 1)
    assert {name for name, _ in chosen} == {
        f"0-0-000000.{len(played) // 2}.npz",
        f"0-1-000000.{len(played) - len(played) // 2}.npz",
    }
    records.write(played[:3], tmp_path / "1", "0-0-000000")
    with pytest.raises(UserError, match="holds 3 games, expected 9 or more"):
        window.choose(tmp_path / "1", 9, 1)
    with pytest.raises(UserError, match="on 7 lines; was the file replaced"):
        window.read_generation(tmp_path / "0", chosen[:1], 7)


def test_a_pass_takes_a_share_once_in_symmetries(played, tmp_path):
    cfg = config("batch_size=8", "filter_amount=0.5", "window=2")
    first, second = (generation(tmp_path / str(i), played, i)[0] for i in range(2))
    own = window.Window(cfg, ALONE)
    for examples in (first, first, second):
        own.add(examples)
    assert len(own.generations) == 2
    batches = list(own.batches(seed=1, iteration=7))
    total = len(first.z) + len(second.z)
    assert 0.3 * total < 8 * len(batches) < 0.7 * total
    known = {}
    for examples in own.generations:
        planes = window.unpack(examples.planes, 5)
        for turn in range(8):
            turns = torch.full((len(planes),), turn, dtype=torch.int32)
            turned, pi = transform_planes(planes, turns), transform_policies(examples.pi, 5, turns)
            for x, p, z in zip(turned, pi, examples.z, strict=True):
                known.setdefault(x.numpy().tobytes(), []).append((p, float(z)))
    for batch in batches:
        for x, p, z in zip(*batch, strict=True):
            assert any(torch.equal(p, q) and float(z) == w for q, w in known[x.numpy().tobytes()])
    again = list(own.batches(seed=1, iteration=7))
    assert all(torch.equal(a.planes, b.planes) for a, b in zip(batches, again, strict=True))
    other = list(own.batches(seed=1, iteration=8))
    assert not torch.equal(batches[0].planes, other[0].planes)


# Processes ---------------------------------------------------------------------------------------------------------


def test_a_seat_changes_the_network_in_mid_game_and_credits_the_last(tmp_path):
    cfg = config()
    seat = workers.Seat(cfg, tmp_path, 0, 0, 1, 0)
    seat.publish(network(cfg), 0)
    for _ in range(20):
        seat.round()
    seat.publish(network(cfg, 2), 1)
    while not records.count(tmp_path / "games" / "1"):
        seat.round()
    first = records.read(records.files(tmp_path / "games" / "1")[0])[0]
    assert first.model == 1
    assert len(first.moves) > 10, "it began with network 0"


def test_the_first_generation_ends_with_its_network(tmp_path):
    cfg = config("bootstrap=true")
    seat = workers.Seat(cfg, tmp_path, 0, 0, 1, 0)
    seat.publish(network(cfg), 0)
    assert seat.play.halves[0].play.readouts == 80
    seat.publish(network(cfg), 1)
    assert seat.play.halves[0].play.readouts == cfg.play.readouts


def test_each_start_has_random_numbers_of_its_own(tmp_path):
    assert [workers.count_start(tmp_path) for _ in range(3)] == [0, 1, 2]
    cfg = config()
    firsts = {
        workers.Seat(cfg, tmp_path, rank, worker, 1, start).first_id
        for rank, worker, start in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 3)]
    }
    assert len(firsts) == 5
    assert max(firsts) + (1 << 24) < 1 << 63


def test_the_newest_network_is_the_one_with_the_highest_number(tmp_path):
    assert workers.newest_model(tmp_path) is None
    (tmp_path / "models").mkdir()
    for number in (2, 10, 9):
        save(network(config()), workers.model_path(tmp_path, number))
    (tmp_path / "models" / "000011.pt.partial").write_bytes(b"half")
    assert workers.newest_model(tmp_path) == 10
