"""Calls of `package`, and what the tests of it look at."""

from pathlib import Path

from mlperf_fast import cli
from mlperf_fast.submission import package
from mlperf_fast.submission.description import COUNTS, FIELDS

ANSWERS = {field: "2" if field in COUNTS else "as built" for field, wanted in FIELDS.items() if wanted}
for given_by_option in ("submitter", "division", "status", "system_name"):
    del ANSWERS[given_by_option]


def call(capsys, out, *arguments, division="open", system="petrel", submitter="Ajax"):
    """(exit code, stdout, stderr) of the command."""
    capsys.readouterr()
    name = ["--system-name", system] if system else []
    command = ["package", *map(str, arguments), "--submitter", submitter, "--division", division, *name]
    code = cli.main([*command, "--out", str(out)])
    return code, *capsys.readouterr()


def make(out, *paths, division="open", system="petrel", submitter="Ajax", sets=(), **others):
    """Only makes the package; its folder, and what was said. UserError as the command's exit code 2."""
    options = package.Options(
        submitter=submitter, division=division, out=Path(out), system_name=system, settings=sets, **others
    )
    root, said = package.make([str(path) for path in paths], options)
    return Path(root), said


def snapshot(root):
    return {path: path.lstat().st_mtime_ns for path in Path(root).rglob("*")}


def names(root):
    return {path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file()}
