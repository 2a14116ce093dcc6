"""`mlperf-fast report`: what a submission's runs show, as one HTML file that a browser shows and a printer prints.

The logs are read and judged in report_results.py; report_page.py makes the page of it, report_figures.py its pictures.
Nothing of a log is taken for markup, and the file loads nothing and runs nothing.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mlperf_fast.errors import UserError
from mlperf_fast.submission.report_page import page
from mlperf_fast.submission.report_results import gather
from mlperf_fast.submission.report_svg import require_matplotlib
from mlperf_fast.submission.tables import figure, printable
from mlperf_fast.suite import RULESET


def main(
    paths: Sequence[str],
    out: str | os.PathLike[str],
    custom: str | os.PathLike[str] | None = None,
    bert_train_samples: bool = False,
) -> int:
    """Writes the page and prints the verdicts. Exit code: 0 if everything passes, else 1.

    UserError (2) for paths without logs, without matplotlib, and if the file can't be written.
    """
    require_matplotlib()
    target = Path(out)
    if target.is_dir():
        raise UserError(f"{printable(target)} is a folder; name the file to write, such as report.html in it")
    if not target.parent.is_dir():
        raise UserError(f"{printable(target)}: its folder doesn't exist: make it first")
    everything = gather(paths, custom, bert_train_samples=bert_train_samples)
    write(target, page(everything))
    for one in everything.results:
        minutes = f"{figure(one.score.minutes, 3)} minutes" if one.score.minutes is not None else "no score"
        print(f"{'passes' if one.passes else 'FAILS '}  {one.system} {one.name}: {minutes}")
    for other in everything.others:
        if not other.passes:
            print(f"FAILS   {other.kind} {printable(other.path)}")
    print(f"written: {printable(target)}, ruleset {RULESET}")
    return 0 if everything.passes else 1


def write(path: Path, content: str) -> None:
    """Whole or not at all: a reader never sees a part, and a failure, a UserError, leaves what was there."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            partial.write_text(content, encoding="utf-8")
            os.replace(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink()
    except OSError as error:
        raise UserError(f"{printable(path)} can't be written: {error.strerror}") from None
