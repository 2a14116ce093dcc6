"""Minigo end to end, as a user runs it: a run, a kill, processes that play, several ranks, prepare, what is refused."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import closed_logs
import pytest
import small_minigo
import torch
from small_dlrm import records as log_records

from mlperf_fast import cli
from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.run import refuse_false_claims
from mlperf_fast.submission.check import check_file, passes
from mlperf_fast.workloads.minigo import model, records, sgf, workload
from mlperf_fast.workloads.minigo.presets import PRESETS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = Ranks(0, 1, torch.device("cpu"))


def config(*sets, preset="demo"):
    return from_preset(PRESETS[preset], preset, [part for part in sets if part != "--set"])[0]


def run(out, *more):
    return cli.main(["run", "minigo", "--out", str(out), *small_minigo.settings(*more)])


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def keys(out):
    return [record["key"] for record in log_records(out / "result_0.txt")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run to its last network, whose target no network reaches."""
    out = tmp_path_factory.mktemp("minigo") / "run"
    assert run(out, "target=1.5", "max_epochs=3") == 1
    return out


def test_a_run_plays_trains_and_judges(whole):
    found = summary_of(whole)
    assert [epoch for epoch, _ in found["curve"]] == [1, 2, 3]
    assert all(0 <= rate <= 1 for _, rate in found["curve"])
    assert sorted(path.name for path in (whole / "models").iterdir()) == [f"{i:06d}.pt" for i in range(4)]
    for network in range(3):
        assert records.count(whole / "games" / str(network)) >= 6
        assert len(json.loads((whole / "games" / str(network) / "chosen.json").read_text())) == 6
    log = log_records(whole / "result_0.txt")
    epochs = [r["metadata"]["epoch_num"] for r in log if r["key"] == "epoch_start"]
    assert epochs == [1, 2, 3]
    assert sum(r["key"] == "actual_selfplay_games_per_generation" for r in log) == 1 + 2 + 2, "a window of two"
    assert [r["metadata"]["iteration"] for r in log if r["key"] == "save_model"] == [1, 2, 3]
    assert [r["metadata"]["epoch_num"] for r in log if r["key"] == "eval_accuracy"] == [1, 2, 3]
    stats = [r["value"] for r in log if r["key"] == "tracked_stats"]
    assert all({"game_moves", "black_wins", "passes", "loss", "throughput"} <= s.keys() for s in stats)
    assert passes(check_file(whole / "result_0.txt"))


def test_final_games_are_there_to_replay(whole):
    files = sorted((whole / "sgf").iterdir())
    assert len(files) == 6
    games = [sgf.read(path)[0] for path in files]
    assert [game.info["PB"] == "mlperf_fast" for game in games] == [True] * 3 + [False] * 3
    for game in games:
        assert sgf.replay(game).facts().passes.tolist() == [2]
    shown = [r["value"] for r in log_records(whole / "result_0.txt") if r["key"] == "final_game"]
    assert [len(value["board"]) for value in shown] == [5]


def test_the_clock_stops_at_the_export_of_the_network_that_won(tmp_path):
    """Evaluation is off the clock: run_stop has an earlier time than the evaluation's lines before it."""
    assert run(tmp_path / "run", "target=0.01", "match.opponent_readouts=1") == 0
    log = log_records(tmp_path / "run" / "result_0.txt")
    times = {r["key"]: r["time_ms"] for r in log}
    winner = next(r["metadata"]["epoch_num"] for r in log if r["key"] == "eval_accuracy" and r["value"] >= 0.01)
    saved = {r["metadata"]["iteration"]: r["time_ms"] for r in log if r["key"] == "save_model"}
    assert log[-1]["key"] == "run_stop"
    assert log[-1]["metadata"]["status"] == "success"
    assert abs(times["run_stop"] - saved[winner]) <= 50
    assert times["run_stop"] < times["eval_start"]
    assert summary_of(tmp_path / "run")["run_seconds"] == (times["run_stop"] - times["run_start"]) / 1000
    assert passes(check_file(tmp_path / "run" / "result_0.txt"))


def test_the_same_seed_gives_the_same_run(whole, tmp_path):
    assert run(tmp_path / "run", "target=1.5", "max_epochs=3") == 1
    assert summary_of(tmp_path / "run")["curve"] == summary_of(whole)["curve"]


@pytest.mark.parametrize("network", [1, 2])
def test_a_killed_run_loses_no_finished_game(whole, tmp_path, network):
    out = tmp_path / "run"
    code = f"""
from mlperf_fast import cli
from mlperf_fast.workloads.minigo import loop
save = loop.save_network
def save_and_die(run, number):
    if number == {network}:
        import os; os._exit(9)
    save(run, number)
loop.save_network = save_and_die
cli.main(["run", "minigo", "--out", {str(out)!r}, *{small_minigo.settings("target=1.5", "max_epochs=3")!r}])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    games = {path: path.stat().st_mtime_ns for path in (out / "games").rglob("*.npz")}
    assert games
    assert cli.main(["run", "minigo", "--resume", str(out)]) == 1
    assert all(path.stat().st_mtime_ns == then for path, then in games.items()), "none was written over"
    assert summary_of(out)["curve"][0] == summary_of(whole)["curve"][0]
    saved = [r["metadata"]["iteration"] for r in log_records(out / "result_0.txt") if r["key"] == "save_model"]
    assert saved == [1, 2, 3]
    assert passes(check_file(out / "result_0.txt"))


def test_processes_play_while_this_one_trains(tmp_path):
    out = tmp_path / "run"
    assert run(out, "play.workers=2", "target=1.5") == 1
    seats = {path.name.rsplit("-", 2)[0] for path in (out / "games").rglob("*.npz")}
    assert seats == {"0-0", "0-1"}
    assert passes(check_file(out / "result_0.txt"))


def test_a_player_that_dies_ends_the_run_and_keeps_the_games(tmp_path):
    out = tmp_path / "run"
    settings = small_minigo.settings("play.workers=1", "games=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlperf_fast", "run", "minigo", "--out", str(out), *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob("games/0/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    players = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(players) == 1
    subprocess.run(["kill", "-9", players[0]], check=True)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the self-play process selfplay-0 ended with code -9" in error
    assert "--resume" in error
    assert records.count(out / "games" / "0") > 0
    assert keys(out)[-1] == "run_stop"


def test_players_go_with_their_run(tmp_path):
    """A run that is killed leaves no process behind."""
    out = tmp_path / "run"
    settings = small_minigo.settings("play.workers=1", "games=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlperf_fast", "run", "minigo", "--out", str(out), *settings],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob("games/0/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_two_ranks_play_and_train_one_network(tmp_path):
    out = tmp_path / "run"
    settings = small_minigo.settings("target=1.5", "match.games=7")
    answer = subprocess.run(
        [*TORCHRUN, "-m", "mlperf_fast", "run", "minigo", "--out", str(out), *settings],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "did not reach the target" in answer.stdout, answer.stderr
    assert passes(check_file(out / "result_0.txt"))
    assert {path.name[0] for path in (out / "games").rglob("*.npz")} == {"0", "1"}
    rates = [rate for _, rate in summary_of(out)["curve"]]
    assert all(rate * 7 == pytest.approx(round(rate * 7)) for rate in rates), "of all ranks' games together"


@pytest.mark.parametrize(("moment", "networks"), [("save_state", 2), ("judge", 4)])
def test_one_rank_trains_on_what_another_plays(tmp_path, moment, networks):
    """Killed after its first network, or before its matches, and resumed; both ranks play the matches."""
    out = tmp_path / "run"
    settings = small_minigo.settings("target=1.5", "max_epochs=3", "play.ranks=1", "match.games=7")
    program = tmp_path / "dies.py"
    program.write_text(f"""
import os, sys
from mlperf_fast import cli
from mlperf_fast.workloads.minigo import loop
usual = loop.{moment}
def die(run):
    if len(list((run.folder / "models").glob("*.pt"))) == {networks}:
        os._exit(9)
    return usual(run)
loop.{moment} = die
sys.exit(cli.main(["run", "minigo", "--out", {str(out)!r}, *{settings!r}]))
""")
    assert subprocess.run([*TORCHRUN, str(program)], capture_output=True, check=False).returncode != 0
    assert records.count(out / "games" / "0") >= 6
    answer = subprocess.run(
        [*TORCHRUN, "-m", "mlperf_fast", "run", "minigo", "--resume", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "did not reach the target" in answer.stdout, answer.stderr
    assert passes(check_file(out / "result_0.txt"))
    seats = {path.name.rsplit("-", 1)[0] for path in (out / "games").rglob("*.npz")}
    played = {"1-0-000", "1-0-001"} if networks < 4 else {"1-0-000"}
    assert seats == played, "the second rank alone, before the kill and after it"
    assert len(summary_of(out)["curve"]) == 3
    assert all(rate * 7 == pytest.approx(round(rate * 7)) for _, rate in summary_of(out)["curve"])


def test_a_rank_that_plays_ends_with_the_first_one(tmp_path):
    """Without a launcher that would end it."""
    out = tmp_path / "run"
    settings = small_minigo.settings("play.ranks=1", "games=100000")
    command = [sys.executable, "-m", "mlperf_fast", "run", "minigo", "--out", str(out), *settings]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trains, plays = (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob("games/0/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    trains.kill()
    trains.communicate()
    _, error = plays.communicate(timeout=60)
    assert plays.returncode == 2
    assert "rank 0 of this run ended early" in error


def test_prepare_makes_a_start_and_a_target_and_a_run_goes_on_from_there(tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    cfg = config(*small_minigo.settings(f"data.path={data}"), preset="demo_checkpoint")
    workload.prepare_data(cfg, None, None, print)
    meta = json.loads((data / "meta.json").read_text())
    assert set(meta["files"]) == {"start.pt", "optimizer.pt", "target.pt", *(f"games/{i}/start.6.npz" for i in (0, 1))}
    assert not (data / "making").exists()
    workload.verify_data(cfg, None, print)
    made = {name: (data / name).stat().st_mtime_ns for name in meta["files"]}
    workload.prepare_data(cfg, None, None, print)  # again: nothing is made anew
    assert made == {name: (data / name).stat().st_mtime_ns for name in meta["files"]}

    monkeypatch.setitem(PRESETS, "demo_checkpoint", lambda: cfg)
    out = tmp_path / "run"
    assert cli.main(["run", "minigo", "--preset", "demo_checkpoint", "--out", str(out), "--set", "target=1.5"]) == 1
    log = log_records(out / "result_0.txt")
    assert [r["metadata"]["epoch_num"] for r in log if r["key"] == "epoch_start"] == [3, 4]
    (trained,) = [r["value"] for r in log if r["key"] == "train_samples"]
    start = model.load(data / "start.pt")[1]["step"] * cfg.batch_size
    whole = model.load(out / "models/000004.pt")[1]["step"] * cfg.batch_size
    assert trained == whole - start == summary_of(out)["samples"], "the start's own don't count"
    assert [r["metadata"]["epoch_num"] for r in log if r["key"] == "eval_accuracy"] == [1, 2]
    assert sorted(path.name for path in (out / "models").iterdir()) == ["000002.pt", "000003.pt", "000004.pt"]
    assert passes(check_file(out / "result_0.txt"))

    with pytest.raises(UserError, match=r"holds networks of another shape: model\.width 8"):
        workload.ensure_data(config(*small_minigo.settings(f"data.path={data}", "model.width=4")), print)
    (data / "target.pt").write_bytes((data / "start.pt").read_bytes())
    with pytest.raises(UserError, match=r"target\.pt isn't the file that was made here"):
        workload.verify_data(cfg, None, print)
    (data / "target.pt").unlink()
    with pytest.raises(UserError, match=r"its meta\.json and its files differ: target\.pt"):
        workload.verify_data(cfg, None, print)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("size=4",), "size is 4, expected a board of 5 to 19 lines"),
        (("games=0",), "games is 0, expected a whole number of 1 or more"),
        (("filter_amount=1.5",), "filter_amount is 1.5"),
        (("play.fast_share=1",), "play.fast_share is 1.0"),
        (("play.resign=0.9",), "play.resign is"),
        (("optimizer.lr_boundaries=10",), "optimizer.lr_rates are 1 for 1 boundaries"),
        (("match.opponent=checkpoint",), "data.path names no folder"),
        (("data.path=/nowhere",), "holds no start and target"),
        (("batch_size=9999",), "don't fill a batch of 9999"),
        (("play.ranks=1",), "play.ranks is 1: so many processes only play, and one at least must train"),
        (("play.ranks=-1",), "play.workers, play.cache_mb and model.blocks are counts"),
    ],
)
def test_what_makes_no_run_is_refused(tmp_path, capsys, sets, said):
    assert run(tmp_path / "run", *sets) == 2
    assert said in capsys.readouterr().err


def test_raw_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="minigo takes no raw data"):
        workload.prepare_data(config(), tmp_path, None, print)
    with pytest.raises(UserError, match="this preset needs no data"):
        workload.prepare_data(config(), None, None, print)


@pytest.mark.parametrize("preset", ["closed", "dgxa100_1x8"])
def test_hyperparameters_of_a_closed_run_pass_the_official_check(monkeypatch, tmp_path, preset):
    cfg = config(preset=preset)
    workload.require_sizes(cfg)
    refuse_false_claims(workload.WORKLOAD, cfg)
    values = workload.hyperparameters(cfg, ALONE) | {"actual_selfplay_games_per_generation": cfg.games}
    monkeypatch.setitem(closed_logs.HYPERPARAMETERS, "minigo", values)
    log = closed_logs.write(tmp_path / "result_0.txt", "minigo", batch=cfg.batch_size, epochs=40)
    assert [finding.message for finding in check_file(log) if finding.severity == "error"] == []


def test_a_closed_run_may_not_change_what_the_rules_fix():
    for change in ("games=4096", "play.readouts=400", "komi=6.5", "match.games=100", "play.prune=false"):
        with pytest.raises(UserError, match="the closed division fixes"):
            refuse_false_claims(workload.WORKLOAD, config(change, preset="closed"))
    refuse_false_claims(workload.WORKLOAD, config("play.cache_mb=0", "play.games=64", preset="closed"))


def test_a_profile_watches_training_steps(tmp_path, capsys):
    out = tmp_path / "profile"
    settings = small_minigo.settings("filter_amount=1", "batch_size=8")
    assert cli.main(["profile", "minigo", "--steps", "2:3", "--out", str(out), *settings]) == 0
    assert "optimizer" in capsys.readouterr().out
