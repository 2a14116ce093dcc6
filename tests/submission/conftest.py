import shutil
from pathlib import Path

import closed_logs
import filing
import pytest
import small_dlrm
from mlperf_logging.compliance_checker import mlp_compliance

from mlperf_fast.submission import runlog
from mlperf_fast.suite import BENCHMARKS

SAMPLES = Path(__file__).parents[2] / "../shared/data/submission_logs/results"


@pytest.fixture
def samples():
    """The folder of real result logs of the round: <system>/<benchmark>/result_*.txt."""
    if not SAMPLES.is_dir():
        pytest.skip(f"no real logs at {SAMPLES}")
    return SAMPLES


@pytest.fixture
def path(tmp_path):
    return tmp_path / "result_0.txt"


@pytest.fixture(scope="session")
def write_log():
    """write_log(path, benchmark) -> path: the log of a small demo run, written by RunLog as a run does."""

    def write(path, benchmark="dlrm", status="success"):
        with runlog.open_log(path, rank=0) as log:
            runlog.log_submission(
                log, benchmark, is_demo=True, division=None, status="research", org="house", platform="two cores"
            )
            log.event("cache_clear", True)
            log.start("init_start")
            runlog.log_seed(log, runlog.draw_seed())
            log.end("init_stop")
            log.start("run_start")
            log.event("train_samples", 4096)
            log.event("eval_samples", 512)
            log.start("block_start", metadata={"first_epoch_num": 1, "epoch_count": 1})
            runlog.tracked_stats(log, step=1, samples=4096, seconds=0.5)
            accuracy = dict.fromkeys(BENCHMARKS[benchmark].target, 0.25)
            log.event("eval_accuracy", accuracy if len(accuracy) > 1 else 0.25, {"epoch_num": 1})
            log.end("block_stop", metadata={"first_epoch_num": 1})
            log.end("run_stop", metadata={"status": status})
        return path

    return write


@pytest.fixture(scope="module")
def demo(tmp_path_factory, write_log):
    """The lines of a good demo log, as bytes without their ends."""
    return write_log(tmp_path_factory.mktemp("demo") / "result_0.txt").read_bytes().splitlines()


@pytest.fixture
def file(tmp_path):
    """file(content) -> path of a result log with that content (bytes, or lines)."""

    def write(content):
        path = tmp_path / "result_0.txt"
        path.write_bytes(content if isinstance(content, bytes) else b"".join(line + b"\n" for line in content))
        return path

    return write


@pytest.fixture
def quick_official(monkeypatch):
    """The official checkers parse their rule files once: nine tenths of their time; their verdicts are the same."""
    parsed, load = {}, mlp_compliance.yaml.load

    def once(file, Loader):
        if file.name not in parsed:
            parsed[file.name] = load(file, Loader=Loader)
        return parsed[file.name]

    monkeypatch.setattr(mlp_compliance.yaml, "load", once)


# --- what `package` takes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as a campaign leaves it: five small runs of the demo, each in a second."""
    folder = tmp_path_factory.mktemp("made")
    return small_dlrm.campaign(folder / "campaign", small_dlrm.write(folder / "small"))


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "in/runs")


@pytest.fixture
def logs(tmp_path):
    """Logs of other code, in the closed division."""
    return closed_logs.folder(tmp_path / "in/logs")


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "in/trainer"
    (folder / "src").mkdir(parents=True)
    (folder / "README.md").write_text("./run.sh\n")
    (folder / "src/train.py").write_text("train()\n")
    (folder / "run.sh").write_text("python src/train.py\n")
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.fixture
def answers(tmp_path):
    """A file with all answers that the rules want."""
    path = tmp_path / "in/system.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f'{field} = "{value}"\n' for field, value in filing.ANSWERS.items()))
    return path
