"""A system description put together: who answers each of its 33 fields, and which are left to ask for.

Later answers count: what the machine tells (machine.py), the framework of the runs, a TOML file, `--set-system`, and
the options that have names of their own. Nothing is made up. A field that the rules let be empty stays so; one that
wants an answer and has none is an error that shows the file to fill in.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlperf_fast.config import nearest
from mlperf_fast.errors import UserError
from mlperf_fast.submission.description import COUNTS, FIELDS
from mlperf_fast.submission.records import shown
from mlperf_fast.submission.sanity import PLACEHOLDER
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import DIVISIONS, STATUSES

MAX_BYTES = 2**16  # of a file of answers
MAX_TEXT = 1000  # characters of an answer
# How answers to fields look; those of v2.0's own submitters, shortened.
_EXAMPLES = {
    "number_of_nodes": "1",
    "host_processors_per_node": "2",
    "host_processor_model_name": "AMD EPYC 7742",
    "host_processor_core_count": "64",
    "host_processor_vcpu_count": "128",
    "host_processor_frequency": "up to 3.40 GHz",
    "host_processor_caches": "L1d 32 KiB, L1i 32 KiB, L2 512 KiB, L3 16 MiB for 8 threads",
    "host_processor_interconnect": "Infinity Fabric",
    "host_memory_capacity": "2 TB",
    "host_storage_type": "NVMe SSD",
    "host_storage_capacity": "30 TB",
    "host_networking": "8x InfiniBand 200 Gb/s",
    "host_networking_topology": "fat tree",
    "host_memory_configuration": "32x 64 GB DDR4-3200",
    "accelerators_per_node": "8",
    "accelerator_model_name": "NVIDIA A100-SXM4-80GB",
    "accelerator_host_interconnect": "PCIe gen 4 x16",
    "accelerator_frequency": "1.4 GHz",
    "accelerator_on-chip_memories": "L2 40 MB",
    "accelerator_memory_configuration": "HBM2e",
    "accelerator_memory_capacity": "80 GB",
    "accelerator_interconnect": "NVLink 3.0, 600 GB/s",
    "accelerator_interconnect_topology": "NVSwitch, all to all",
    "cooling": "air",
    "framework": "PyTorch 2.13.0",
    "other_software_stack": "CUDA 13.0, NCCL 2.27",
    "operating_system": "Ubuntu 20.04.4 LTS",
    "status": "onprem",
    "system_name": "petrel",
}
_OPTIONS = {"submitter": "--submitter", "division": "--division", "status": "--status", "system_name": "--system-name"}


def read_toml(path: Path) -> dict[str, Any]:
    """The answers in a TOML file: FIELD = "text", a whole number for a count; other_software_stack may be a table."""
    try:
        import tomllib
    except ModuleNotFoundError:
        raise UserError("reading TOML needs Python 3.11 or later: give answers by --set-system instead") from None
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(
                f"{printable(path)}: larger than {MAX_BYTES:,} bytes; expected answers to {len(FIELDS)} fields"
            )
        found = tomllib.loads(data.decode())
    except OSError as error:
        raise UserError(f"{printable(path)}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)}: no TOML: {printable(str(error))}") from None
    return checked(found, printable(path))


def checked(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The answers in the form in which they are filed; UserError for what isn't an answer to a field."""
    return {field: _answer(field, value, source) for field, value in found.items()}


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The answers of `--set-system FIELD=VALUE`."""
    found = {}
    for setting in settings:
        field, separator, value = setting.partition("=")
        if not separator:
            raise UserError(f"--set-system {printable(setting)}: expected FIELD=VALUE, e.g. cooling=air")
        found[field.strip()] = _answer(field.strip(), value.strip(), "--set-system")
    return found


def _answer(field: str, value: Any, source: str) -> Any:
    """The answer in the form in which it is filed; UserError for what isn't one."""
    if field not in FIELDS:
        raise UserError(
            f"{source}: a system description has no field {printable(shown(field))}{nearest(field, FIELDS)}"
        )
    if value == "":  # as in the file to fill in: no answer
        return value
    if field in COUNTS:
        number = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if not (number.isascii() and number.isdecimal() and len(number) <= 10):
            raise UserError(f"{source}: {field} is {shown(value)}; expected a whole number")
        return number
    if field == "other_software_stack" and isinstance(value, dict):
        return {name: _text(f"{field}.{name}", version, source) for name, version in value.items()}
    return _text(field, value, source)


def _text(field: str, value: Any, source: str) -> str:
    if not isinstance(value, str) or not all(map(str.isprintable, (value, field))):
        raise UserError(f"{source}: {printable(field)} is {shown(value)}; expected a text on one line")
    if len(value) > MAX_TEXT:
        raise UserError(f"{source}: {printable(field)} has {len(value):,} characters; {MAX_TEXT} are allowed")
    if value and PLACEHOLDER.fullmatch(value) and value.lower() not in ("none", "n/a", "unknown"):
        raise UserError(f"{source}: {printable(field)} is {shown(value)}, a placeholder; say what the system has")
    return value


def describe(
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    file: Mapping[str, Any],
    settings: Mapping[str, Any],
    options: Mapping[str, str | None],
    *,
    why_no_machine: str = "",
    allow_unknown: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """(the description with all 33 fields, field -> who answered it).

    machine: of machine.facts. versions: of the runs' config.json, with mlperf_fast and torch; empty for other code.
    options: the fields that have an option of their own; None where it wasn't given. allow_unknown: file what has no
    answer as `unknown`. UserError where answers are missing, or an option and a file disagree.
    """
    answers: dict[str, Any] = dict(machine)
    sources = dict.fromkeys(machine, "machine")
    if versions:
        answers["framework"] = f"PyTorch {versions['torch']} with mlperf_fast {versions['mlperf_fast']}"
        rest = {name: version for name, version in versions.items() if name not in ("torch", "mlperf_fast")}
        recorded = answers.get("other_software_stack")
        answers["other_software_stack"] = rest | (recorded if isinstance(recorded, dict) else {})
        sources |= dict.fromkeys(("framework", "other_software_stack"), "runs")
    given = {field: _answer(field, value, _OPTIONS[field]) for field, value in options.items() if value is not None}
    for source, said in (("file", file), ("--set-system", settings), ("options", given)):
        for field, value in said.items():
            if field in given and value != given[field]:
                raise UserError(f"{field} is {shown(value)} by {source}, {shown(given[field])} by {_OPTIONS[field]}")
            if value not in ("", {}):
                answers[field], sources[field] = value, source
    _check(answers)
    missing = [field for field, wanted in FIELDS.items() if wanted and field not in answers]
    by_option = [field for field in missing if field in _OPTIONS]
    if missing and (by_option or not allow_unknown):
        raise UserError(_what_is_missing(missing, answers, why_no_machine))
    for field in missing:
        if field in COUNTS:
            raise UserError(f"{field} can't be unknown, scores need it: --set-system {field}=NUMBER")
        answers[field], sources[field] = "unknown", "nobody"
    return {field: answers.get(field, "") for field in FIELDS}, sources


def _check(answers: Mapping[str, Any]) -> None:
    for field, allowed in (("division", DIVISIONS), ("status", STATUSES)):
        if field in answers and answers[field] not in allowed:
            raise UserError(f"{field} is {shown(answers[field])}; expected one of {', '.join(allowed)}")


def _what_is_missing(missing: Sequence[str], answers: Mapping[str, Any], why_no_machine: str) -> str:
    """What to do, and a file to fill in: first what must have an answer, then what may."""
    asked = [field for field in missing if field in _EXAMPLES]  # the others are named by the command line
    width = max(len(field) for field in FIELDS)
    count = f"{len(missing)} answers" if len(missing) > 1 else "an answer"
    lines = [f"the system description lacks {count} that the rules want: {', '.join(missing)}."]
    if why_no_machine:
        lines.append(f"{why_no_machine}.")
    lines += [
        "Nothing was written. Save this as system.toml, fill it in (the comments are examples), and add",
        "--system system.toml; or answer one by one with --set-system FIELD=VALUE:",
        "",
        *(f'{field} = ""{"":<{width - len(field)}}  # {_EXAMPLES[field]}' for field in asked),
    ]
    optional = [field for field, wanted in FIELDS.items() if not wanted and field not in answers]
    if optional:
        lines += [
            "",
            "# These may be left out; what isn't said stays empty.",
            *(f'# {field} = ""' for field in optional),
        ]
    return "\n".join(line.rstrip() for line in lines)


def text(description: Mapping[str, Any]) -> str:
    """The file's content."""
    return json.dumps(description, indent=4) + "\n"
