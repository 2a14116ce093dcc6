"""Who may import whom: docs/design.md's table, held against the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlperf_fast"
# Minigo's outer loop over loop/'s step, clock, log and checkpoints, and who works for it.
OWN_LOOP = {"minigo/loop.py", "minigo/prepare.py", "minigo/inference.py"}
# Everyone may import these.
COMMON = {"errors", "config", "suite", "tensor_names"}
ALLOWED = {
    "submission": {"submission", "suite"},
    "ops": {"ops", "kernels", "_C", "_cuda"},
    "nn": {"nn", "ops", "_C"},
    "optim": {"optim", "ops"},
    "data": {"data", "_C"},
    "profiling": {"profiling"},
    "loop": {"loop", "submission", "optim", "ops", "profiling", "workloads"},  # workloads: base.py, the contract, alone
    "workloads": {"workloads", "data", "nn", "optim", "ops", "loop", "_C", "submission", "profiling"},  # see below
}


def imports(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlperf_fast"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("mlperf_fast")}
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_it_may(folder):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            part = name.split(".")[1]
            if part == "__version__":
                continue
            assert part in ALLOWED[folder] | COMMON, f"{path.relative_to(PACKAGE)} imports {name}"
            if folder == "loop" and part == "workloads":
                assert name.startswith("mlperf_fast.workloads.base"), f"{path.name} imports {name}"
            if folder == "workloads" and "/".join(path.parts[-2:]) not in OWN_LOOP:
                own = part not in ("loop", "submission", "profiling") or name.startswith("mlperf_fast.loop.dist")
                assert own, f"{path.name} imports {name}"


def test_what_needs_no_torch_imports_none():
    """Checking logs, listing and --help must work on a machine that has only the logs."""
    code = (
        "import sys, mlperf_fast.cli, mlperf_fast.workloads;"
        "import mlperf_fast.submission.check, mlperf_fast.submission.score, mlperf_fast.submission.runlog;"
        "import mlperf_fast.submission.convergence, mlperf_fast.submission.campaign;"
        "import mlperf_fast.submission.package, mlperf_fast.submission.report;"
        "mlperf_fast.workloads.preset_names('dlrm'); mlperf_fast.cli.parser();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_outgrows_its_reader():
    root = PACKAGE.parent
    files = [*PACKAGE.rglob("*.py"), *(root / "kernels").glob("*.py"), *(root / "csrc").rglob("*.*"), root / "setup.py"]
    limits = {"ops": 300, "kernels": 350}
    for path in files:
        lines = path.read_text().count("\n")
        limit = 200 if path.name == "train.py" else limits.get(path.parent.name, 500)
        assert lines <= limit, f"{path.relative_to(root)} has {lines} lines, more than {limit}"
