"""The rules on a package as a whole: what must lie where, and what its way through git demands.

The official package checker looks at systems/ and results/ only, and the repository checker resolves links against the
folder that it is called from; here a link leads where the file system says.
"""

import os
from collections.abc import Iterator

from mlperf_fast.submission.folders import Folder, benchmark_folder, entries
from mlperf_fast.submission.records import MAX_BYTES, Finding, shown
from mlperf_fast.suite import BENCHMARKS

TREE = "submission_rules.adoc v2.0, package"
_REPOSITORY = "mlperf-logging, repo_checker"
NAMES = frozenset(benchmark.log_name for benchmark in BENCHMARKS.values())


def check(root: str) -> tuple[list[Folder], list[str], list[Finding]]:
    """(benchmark folders, system descriptions, findings on the tree) of a package."""
    findings: list[Finding] = []
    folders = list(_results(root, findings))
    descriptions = list(_descriptions(root, {folder.system for folder in folders}, findings))
    findings += _code(root, folders)
    findings += _repository(root)
    return folders, descriptions, findings


def _fault(rule: str, message: str, path: str, severity: str = "error", source: str = TREE) -> Finding:
    return Finding(rule, None, message, source, severity, path)


def _list(path: str, findings: list[Finding]) -> list[os.DirEntry[str]]:
    try:
        return entries(path)
    except OSError as error:
        findings.append(_fault("package/unreadable", f"can't be read: {error.strerror}", path))
        return []


def _results(root: str, findings: list[Finding]) -> Iterator[Folder]:
    """Every folder below results/<system>/ that holds logs, or bears a benchmark's name and should."""
    results = os.path.join(root, "results")
    if not os.path.isdir(results):
        findings.append(_fault("package/tree", "the package has no folder results", root))
        return
    systems = [entry for entry in _list(results, findings) if os.path.isdir(entry.path)]
    if not systems:
        findings.append(_fault("package/tree", "no system's folder in it", results))
    for system in systems:
        found = 0
        for entry in _list(system.path, findings):
            if not os.path.isdir(entry.path):
                continue
            try:
                folder = benchmark_folder(entry.path)
            except OSError as error:
                findings.append(_fault("package/unreadable", f"can't be read: {error.strerror}", entry.path))
                found += 1
                continue
            if folder.logs or entry.name in NAMES:
                found += 1
                yield folder
            else:
                message = "neither a benchmark of v2.0 nor a folder of logs; it is passed over"
                findings.append(_fault("package/benchmark", message, entry.path, "warning"))
        if not found:
            findings.append(_fault("package/tree", "no benchmark's folder with logs in it", system.path))


def _descriptions(root: str, systems: set[str], findings: list[Finding]) -> Iterator[str]:
    path = os.path.join(root, "systems")
    if not os.path.isdir(path):
        findings.append(_fault("package/tree", "the package has no folder systems", root))
        return
    for entry in _list(path, findings):
        if not entry.name.endswith(".json"):
            message = "no system description: its name must end in .json"
            findings.append(_fault("package/tree", message, entry.path, "warning"))
            continue
        if entry.name.removesuffix(".json") not in systems:
            message = "a system without results: results/ has no folder of this name"
            findings.append(_fault("package/no-results", message, entry.path, "warning"))
        yield entry.path


def _code(root: str, folders: list[Folder]) -> Iterator[Finding]:
    """No official check looks at the code; reviewers do."""
    seen = set()
    for folder in folders:
        name = os.path.basename(folder.path)
        code = os.path.join(root, "benchmarks", name, "implementations")
        if not os.path.isdir(code):
            if name not in seen:
                yield _fault("package/code", f"no code for {shown(name)}: this folder is missing", code, "warning")
            seen.add(name)
            continue
        own = os.path.join(code, folder.system)
        unread: list[Finding] = []  # what isn't there to be read, or may not be, is missing in either case
        if not any(entry.name.lower().startswith("readme") for entry in _list(own, unread)):
            yield _fault("package/code", "no README for this system: how its runs were started", own, "warning")
        folders_of_code = [e for e in _list(code, unread) if os.path.isdir(e.path) and e.name != folder.system]
        if not folders_of_code and name not in seen:
            yield _fault("package/code", "no folder with an implementation in it", code, "warning")
        seen.add(name)


def _repository(root: str) -> Iterator[Finding]:
    """Names, sizes and links that a repository can't take. Links aren't followed, so a loop of them ends."""
    unreadable: list[OSError] = []
    inside = os.path.realpath(root) + os.sep
    for folder, below, files in os.walk(root, onerror=unreadable.append):
        for name in sorted(below) + sorted(files):
            path = os.path.join(folder, name)
            if name.startswith(".") or " " in name:
                message = "the name begins with a dot" if name.startswith(".") else "the name has a space in it"
                yield _fault("package/name", message, path, source=_REPOSITORY)
            if os.path.islink(path):
                target = os.path.realpath(path)
                if not os.path.exists(path):
                    message = f"a link that leads nowhere: {shown(os.readlink(path))}"
                    yield _fault("package/link", message, path, source=_REPOSITORY)
                elif not (target + os.sep).startswith(inside):
                    message = f"a link out of the package: {shown(os.readlink(path))}"
                    yield _fault("package/link", message, path, source=_REPOSITORY)
            elif name in files and os.path.lexists(path) and os.lstat(path).st_size > MAX_BYTES:
                message = f"{os.lstat(path).st_size / 2**20:,.0f} MiB, more than the {MAX_BYTES // 2**20} allowed"
                yield _fault("package/size", message, path, source=_REPOSITORY)
        below[:] = sorted(name for name in below if not name.startswith("."))
    for error in unreadable:
        yield _fault("package/unreadable", f"can't be read: {error.strerror}", str(error.filename))
