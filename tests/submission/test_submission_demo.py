"""`make submission-demo`, whole, on a data set that trains in a moment."""

import subprocess
import sys
from pathlib import Path

import small_dlrm

ROOT = Path(__file__).parents[2]


def test_the_whole_way_in_one_target(tmp_path):
    data = small_dlrm.write(tmp_path / "small")
    arguments = " ".join(small_dlrm.settings(data, "target=0.3", "max_epochs=1", "drop_caches=off"))
    # The tests' own Python in the place of the .venv that the target would set up.
    command = ["make", "--old-file=.venv/.ready", "submission-demo", f"BIN={Path(sys.executable).parent}"]
    command += [f"DEMO={tmp_path}/demo", f"ARGS={arguments}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tmp_path}/demo/dlrm: passes ruleset 2.0.0 as open dlrm, 5 logs, 0 error(s), 0 warning(s)" in done.stdout
    assert f"{tmp_path}/demo/package/demo: found no errors" in done.stdout
    assert f"Made in {tmp_path}/demo, division open, of made-up data" in done.stdout
    made = tmp_path / "demo/package/demo"
    assert len(list((made / "results/this_machine/dlrm").glob("result_?.txt"))) == 5
    assert (
        "mlperf-fast campaign dlrm --preset demo --runs 5"
        in (made / "benchmarks/dlrm/implementations/this_machine/README.md").read_text()
    )
    page = (tmp_path / "demo/report.html").read_text()
    assert "this_machine" in page
    assert page.rstrip().endswith("</html>")
