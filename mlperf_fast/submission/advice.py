"""What to do about each finding, in the order of the checks. A rule without an entry takes its group's."""

ADVICE = {
    "file": "name a result log that can be read; in a package, replace what isn't one",
    "log/empty": "the run wrote no record: look into its output, then run it again",
    "log/unjudged": "report this file as a fault of mlperf-fast; until then don't submit it",
    "record": "write records from one process, each by one write of a whole line; never mend a log by hand",
    "record/cut": "the run was killed while it wrote; it counts as failed: run it again",
    # The official compliance check
    "compliance": "change what the code logs, then run again; a log may not be edited",
    "compliance/stopped": "log values of the type that the rules give for this key, and run again",
    "compliance/eval_accuracy": "the run missed its target and counts as failed; few enough may",
    "compliance/init_stop": "shorten what happens before run_start: compilation, warm-up, loading of weights",
    "compliance/weights_initialization": "log each tensor of the reference once, by its name there, from one rank",
    "compliance/submission_division": "log it once: closed or open, in lower case",
    "compliance/submission_status": "log it once: cloud, onprem, preview or research",
    # Our own rules on one log
    "sanity/evaluation-outside-run": "log run_stop after the last evaluation, and none before run_start",
    "sanity/evaluation-value": "log the metric as the rules name it; if it is NaN, the run has diverged",
    "sanity/epoch-num": "log what the convergence check reads there: epochs, for bert samples, for dlrm 1 + the part",
    "sanity/evaluation-interval": "evaluate as often as the reference does; what was skipped would have cost time",
    "sanity/evaluation-items": "log the number of items in the evaluation set, not of batches",
    "sanity/clock": "one clock for a whole run: one run_start, one run_stop, no resetting of the system's time",
    "sanity/init-time": "shorten what happens before run_start: compilation, warm-up, loading of weights",
    "sanity/pause": "start the clock when initialization ends, or tell the reviewers what the system did",
    "sanity/run-time": "log run_stop with the time at which it happened",
    "sanity/status": "log success if an evaluation reached the target, else aborted",
    "sanity/seeds": "draw one seed for the run and log it once",
    "sanity/placeholder": "set who submits, and the platform's name, before the run",
    "sanity/closed-demo": "log demos and made-up data as open; for closed take the benchmark's data",
    "sanity/cache-clear": "drop the caches before each run and log cache_clear as true",
    # A benchmark's runs
    "runs/benchmark": "log submission_benchmark; names of v2.0: resnet unet3d ssd maskrcnn rnnt bert dlrm minigo",
    "runs/count": "file exactly as many; of more runs, those of the median window (mlperf-fast score says which)",
    "runs/names": "number the logs without gaps from 0",
    "runs/failed": "look at the findings of these logs; run again only as many runs in a row as the rules allow",
    "runs/copied": "file each run once",
    "runs/mixed": "all runs of a result must be of the same benchmark, division and system",
    "runs/mixed-batch": "run all with one batch size: there is one reference for each",
    "runs/mixed-settings": "run all with the same hyperparameters, or be ready to explain",
    "runs/scaling": "delete it unless the review committee ordered it",
    "runs/bypass": "a failed test that was switched off goes to audit: have the reasons ready",
    "runs/other-files": "keep what isn't a log out of the folder",
    "seeds": "draw a seed from the system for each run and log it as an integer, with mllog",
    "rcp/too-fast": "find what differs from the reference's mathematics: data order, schedule, evaluation, precision",
    "rcp/missing": "train the reference at this batch size, with twice the runs of a submission, and submit that",
    "rcp/untested": "log global_batch_size, one number, in every run",
    # System descriptions
    "system": "mend the file: texts in quotes, whole numbers for counts, nothing left out",
    "system/division": "write closed or open, in lower case: anything else is tested as open",
    "system/empty": "say what the system has",
    "system/placeholder": "say what the system has, or leave the text empty where that is allowed",
    "system/status": "use the word of the logs",
    "system/name": "call file and system alike",
    # The package
    "package": "mend the tree: results/<system>/<benchmark>/result_<i>.txt and systems/<system>.json",
    "package/benchmark": "use the log's name of the benchmark for its folder",
    "package/no-description": "add the description under the very name of the folder in results",
    "package/no-results": "add its results, or leave the description out",
    "package/division": "make both say the same: the official checker would test one and skip the other",
    "package/status": "make both say the same",
    "package/submitter": "make both say the same",
    "package/code": "add benchmarks/<benchmark>/implementations/, the code in one folder, the README in <system>",
    "package/name": "rename it: git and the submission system can't take it",
    "package/size": "keep other output out of the log, or compress it and leave it out",
    "package/link": "put the file itself in its place",
    "package/unreadable": "make it readable",
    "package/no-logs": "name a folder with result_*.txt in it, a system's folder, or the top of a package",
}


def advice(rule: str) -> str:
    """What to do about a finding of this rule."""
    return ADVICE.get(rule) or ADVICE[rule.partition("/")[0]]
