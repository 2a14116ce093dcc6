"""The official package checker's verdict on a package, from a process of its own, on a copy.

Its command line ends with 0 whatever it finds, writes scaling.json into the folders that it checks and a log into the
current one, and for a closed `dlrm` ends in a traceback, since a later version dropped that benchmark's number of runs.
So its functions are called, with that number put back, and what they say is kept.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from mlperf_fast.submission import official
from mlperf_fast.suite import BENCHMARKS, RULESET

# In the place of the current folder, the first on Python's path: there might be another mlperf_fast.
_PROGRAM = (
    "import sys; sys.path[0] = sys.argv[1]; from mlperf_fast.submission import official_package;"
    "sys.exit(official_package.judge(sys.argv[2], sys.argv[3] == 'True'))"
)
_STOPPED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """passes: whether both official functions say so. said: their warnings and errors, or why there is no verdict."""

    passes: bool
    said: str


def verdict(root: str, *, bert_train_samples: bool = False) -> Verdict:
    """What the official package checker says of an organization's folder. Nothing in it is changed."""
    try:
        code, said = _ask(root, bert_train_samples)
    except OSError as error:  # shutil.Error is one too; the copy needs room
        return Verdict(False, f"the official checker wasn't asked: it works on a copy, which failed: {error}")
    if code not in (0, 1, _STOPPED):
        said += f"\nthe official checker ended with code {code}"
    return Verdict(code == 0, said)


def _ask(root: str, bert_train_samples: bool) -> tuple[int, str]:
    """(exit code of the process, what it said)."""
    with tempfile.TemporaryDirectory(prefix="mlperf_fast_official_") as scratch:
        copy = os.path.join(scratch, "package")  # the checker takes paths for patterns: one without special signs
        for name in ("systems", "results"):  # it looks at nothing else
            shutil.copytree(os.path.join(root, name), os.path.join(copy, name))
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        command = [sys.executable, "-c", _PROGRAM, here, copy, str(bert_train_samples)]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return answer.returncode, answer.stderr.replace(copy + os.sep, "").strip()


def judge(folder: str, bert_train_samples: bool) -> int:
    """For that process: 0 if the package passes, 1 if not, another code if the checker ends in a traceback."""
    from mlperf_logging.package_checker import package_checker
    from mlperf_logging.rcp_checker import rcp_checker

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    rcp_checker.submission_runs["training"].setdefault("dlrm", BENCHMARKS["dlrm"].runs)
    official.parse_rules_once()
    try:
        systems = package_checker.check_systems(folder, "training", RULESET)
        results = package_checker.check_training_result_files(
            folder, "training", RULESET, quiet=False, werror=False, rcp_bypass=False,
            rcp_bert_train_samples=bert_train_samples, seed_checker_bypass=False,
        )  # fmt: skip
    except Exception as error:
        print(f"the official checker stopped with {type(error).__name__}: {error}", file=sys.stderr)
        return _STOPPED
    return 0 if systems and results else 1
