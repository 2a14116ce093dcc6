"""System descriptions, systems/<system>.json: what the official check demands, and what trips its companions later.

The official check wants 33 fields, whatever they hold. The package checker reads the division from here, and skips the
convergence and seed tests for anything but exactly `closed`; the summarizer adds texts and converts counts.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from mlperf_fast.submission.records import Finding, is_number, shown
from mlperf_fast.submission.sanity import PLACEHOLDER
from mlperf_fast.suite import DIVISIONS, STATUSES

MAX_BYTES = 2**20
_OFFICIAL = "mlperf-logging, system_desc_checker"
_SUMMARY = "mlperf-logging, result_summarizer"
_RULES = "submission_rules.adoc v2.0, system description"

# True: the submission rules want an answer that means something.
FIELDS: dict[str, bool] = {
    "submitter": True,
    "division": True,
    "status": True,
    "system_name": True,
    "number_of_nodes": True,
    "host_processors_per_node": True,
    "host_processor_model_name": True,
    "host_processor_core_count": True,
    "host_processor_vcpu_count": False,
    "host_processor_frequency": False,
    "host_processor_caches": False,
    "host_processor_interconnect": False,
    "host_memory_capacity": True,
    "host_storage_type": True,
    "host_storage_capacity": True,
    "host_networking": False,
    "host_networking_topology": False,
    "host_memory_configuration": False,
    "accelerators_per_node": True,
    "accelerator_model_name": True,
    "accelerator_host_interconnect": False,
    "accelerator_frequency": False,
    "accelerator_on-chip_memories": False,
    "accelerator_memory_configuration": True,
    "accelerator_memory_capacity": True,
    "accelerator_interconnect": False,
    "accelerator_interconnect_topology": False,
    "cooling": False,
    "hw_notes": False,
    "framework": True,
    "other_software_stack": True,
    "operating_system": True,
    "sw_notes": False,
}
COUNTS = ("number_of_nodes", "host_processors_per_node", "accelerators_per_node")
# The official checkers join these as texts, and end in a traceback for anything else.
TEXTS = (
    *("submitter", "system_name", "host_processor_model_name", "host_processor_core_count", "accelerator_model_name"),
    *("accelerators_per_node", "framework", "division", "hw_notes", "sw_notes"),
)
# What submitters wrote in v2.0, where no check looks; later rounds demand the long names.
_KNOWN_STATUSES = {
    *STATUSES,
    *("available", "available on-premise", "available cloud", "preview"),
    *("research, development, or internal (rdi)", "rdi"),
}


def read(path: str | os.PathLike[str]) -> dict[str, Any] | Finding:
    """The object in the file, or why there is none. Never raises for what the file is or holds."""
    try:
        if not os.path.isfile(path):
            why = "a folder" if os.path.isdir(path) else "no regular file" if os.path.exists(path) else "not there"
            return _fault("system/file", f"this is {why}; expected a JSON file", path)
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return _fault("system/file", f"larger than {MAX_BYTES:,} bytes; expected a system description", path)
        found = json.loads(data.decode())
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return _fault("system/file", f"can't be read as JSON: {reason}", path)
    except RecursionError:
        return _fault("system/file", "can't be read as JSON: nested too deeply", path)
    return (
        found if isinstance(found, dict) else _fault("system/file", f"expected an object, found {shown(found)}", path)
    )


def check(path: str | os.PathLike[str]) -> list[Finding]:
    """What is wrong with a system description."""
    found = read(path)
    return [found] if isinstance(found, Finding) else list(_check(found, path))


def accelerators(path: str | os.PathLike[str]) -> int | None:
    """How many the whole system has, if its description says so in whole numbers, and it has any."""
    found = read(path)
    if isinstance(found, Finding):
        return None
    nodes, each = (_count(found.get(name)) for name in ("number_of_nodes", "accelerators_per_node"))
    return nodes * each or None if nodes is not None and each is not None else None


def _check(found: dict[str, Any], path: str | os.PathLike[str]) -> Iterator[Finding]:
    missing = [field for field in FIELDS if field not in found]
    if missing:
        yield _fault("system/fields", f"{len(missing)} of {len(FIELDS)} fields are missing: {', '.join(missing)}", path)
    for field in TEXTS:
        if field in found and not isinstance(found[field], str):
            message = f"{field} is {shown(found[field])}; expected a text, in quotes"
            yield _fault("system/text", message, path, source=_SUMMARY)
    for field in COUNTS:
        said = field in TEXTS and not isinstance(found.get(field), str)
        if field in found and not said and _count(found[field]) is None:
            message = f"{field} is {shown(found[field])}; expected a whole number in quotes"
            yield _fault("system/count", message, path, source=_SUMMARY)
    division = found.get("division")
    if "division" in found and division not in DIVISIONS:
        message = f'division is {shown(division)}; only "closed", so written, is tested as closed'
        yield _fault("system/division", message, path, source="mlperf-logging, package_checker")
    status = found.get("status")
    if isinstance(status, str) and status and status.lower() not in _KNOWN_STATUSES:
        message = f"status is {shown(status)}; expected one of {', '.join(STATUSES)}"
        yield _fault("system/status", message, path, "warning", _RULES)
    for field, meant in FIELDS.items():
        value = found.get(field)
        if field in found and meant and value in ("", None, {}, []):
            yield _fault("system/empty", f"{field} is empty", path, "warning", _RULES)
        elif isinstance(value, str) and value.strip() and PLACEHOLDER.fullmatch(value[:1000]) and not _says_none(value):
            yield _fault("system/placeholder", f"{field} is {shown(value)}, a placeholder", path, "warning", _RULES)
    name, stem = found.get("system_name"), os.path.basename(os.fspath(path)).removesuffix(".json")
    if isinstance(name, str) and name and name != stem:
        message = f"system_name is {shown(name)}, but the file is called {shown(stem)}; checkers go by the file"
        yield _fault("system/name", message, path, "warning", _RULES)


def _says_none(value: str) -> bool:
    """A field without an answer may say so."""
    return value.strip().lower() in ("none", "n/a", "na", "-", "unknown")


def _count(value: Any) -> int | None:
    """As the summarizer's int() takes it; ten digits are more than enough."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value.strip()) <= 10:
        return int(value)
    return int(value) if is_number(value) and value == int(value) and 0 <= value < 1e10 else None


def _fault(
    rule: str, message: str, path: str | os.PathLike[str], severity: str = "error", source: str = _OFFICIAL
) -> Finding:
    return Finding(rule, None, message, source, severity, os.fspath(path))
