"""Changes to result logs, for tests: a log is a list of lines (bytes, without their ends)."""

import json
import logging

from mlperf_logging.compliance_checker import mlp_compliance

from mlperf_fast.submission.records import TOKEN, read_records


def records(path):
    """The records of a file that has no faulty one."""
    found, findings = read_records(path)
    assert not findings
    return found


def line_of(lines, key):
    """Index of the first record of a key."""
    return next(i for i, line in enumerate(lines) if json.loads(line.decode().removeprefix(TOKEN))["key"] == key)


def changed(lines, key, /, **fields):
    """The lines with other fields in the first record of a key; None removes a field."""
    at = line_of(lines, key)
    record = json.loads(lines[at].decode().removeprefix(TOKEN)) | fields
    record = {name: value for name, value in record.items() if value is not None or name == "value"}
    return [*lines[:at], (TOKEN + json.dumps(record)).encode(), *lines[at + 1 :]]


def official_verdict(path):
    """True, False, or None for a traceback: the official checker's own parser and rules, in this process."""
    mlp_compliance.enqueued_configs.clear()
    handlers = logging.getLogger().handlers[:]
    logging.disable(logging.CRITICAL)
    try:
        checker = mlp_compliance.make_checker("training", "2.0.0", False, False)
        return mlp_compliance.main(str(path), "training_2.0.0/common.yaml", checker)[0]
    except Exception:
        return None
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().handlers[:] = handlers
        mlp_compliance.enqueued_configs.clear()


def two_on_a_line(lines):
    at = line_of(lines, "train_samples")
    return [*lines[:at], lines[at] + b" " + lines[at + 1], *lines[at + 2 :]]


def without(*keys):
    return lambda lines: [line for line in lines if not any(f'"key": "{key}"'.encode() in line for key in keys)]


def moved(key, to):
    def move(lines):
        at, to_line = line_of(lines, key), line_of(lines, to)
        rest = lines[:at] + lines[at + 1 :]
        target = to_line - (at < to_line) + 1
        return [*rest[:target], lines[at], *rest[target:]]

    return move


def twice(key, /, **fields):
    def double(lines):
        at = line_of(lines, key)
        return [*lines[: at + 1], changed(lines, key, **fields)[at], *lines[at + 1 :]]

    return double


def change(key, /, **fields):
    return lambda lines: changed(lines, key, **fields)
