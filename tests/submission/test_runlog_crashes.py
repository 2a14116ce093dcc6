"""A full disk, a kill, a second writer, a resumed run: what was in the log stays valid."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from result_logs import records

from mlperf_fast.errors import UserError
from mlperf_fast.submission.runlog import RunLog


def test_an_existing_file_is_refused(path):
    path.write_text("precious")
    with pytest.raises(UserError, match="exists: another run wrote it"):
        RunLog(path)
    assert path.read_text() == "precious"


def test_where_no_log_can_be(tmp_path):
    with pytest.raises(UserError, match="folder doesn't exist"):
        RunLog(tmp_path / "absent" / "result_0.txt")
    with pytest.raises(UserError, match="no such log to resume"):
        RunLog(tmp_path / "result_0.txt", resume_at=0)
    with pytest.raises(UserError, match="can't be opened"):
        RunLog(tmp_path, resume_at=0)
    with pytest.raises(UserError, match="no regular file"):
        RunLog("/dev/null", resume_at=0)


def test_resume_keeps_and_sets_aside(path):
    with RunLog(path) as log:
        log.event("kept", 1)
        at = log.offset
        log.event("lost", 1)
    with open(path, "ab") as file:
        file.write(b':::MLLOG {"half a rec')  # as a crash of another writer could leave it
    behind = path.read_bytes()[at:]
    with RunLog(path, resume_at=at) as log:
        assert log.offset == at
        log.event("again", 2)
    assert [record.key for record in records(path)] == ["kept", "again"]
    cut = path.with_name("result_0.txt.cut")
    assert cut.read_bytes() == behind
    with RunLog(path, resume_at=at):
        pass
    assert cut.read_bytes().startswith(behind)  # a second resume adds to it
    assert b"again" in cut.read_bytes()
    assert path.stat().st_size == at
    with RunLog(path, resume_at=at):
        assert path.stat().st_size == at  # nothing behind: nothing to cut


def test_resume_at_a_wrong_place_changes_nothing(path):
    with RunLog(path) as log:
        log.event("a", 1)
    content = path.read_bytes()
    with pytest.raises(UserError, match="fewer than the"):
        RunLog(path, resume_at=len(content) + 1)
    with pytest.raises(UserError, match="within a record"):
        RunLog(path, resume_at=len(content) - 1)
    assert path.read_bytes() == content
    assert not path.with_name("result_0.txt.cut").exists()
    RunLog(path, resume_at=len(content)).close()  # and the failed attempts hold no lock


def test_two_processes_can_not_continue_one_log(path):
    with RunLog(path), pytest.raises(UserError, match="being written by another process"):
        RunLog(path, resume_at=0)


def test_closed(path):
    log = RunLog(path)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="is closed"):
        log.event("a", 1)


def test_full_disk(path):
    log = RunLog(path)
    log.event("kept", 1)
    content, fd = path.read_bytes(), os.dup(log._fd)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)  # the same number, now a full disk
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        log.event("lost", 1)
    os.dup2(fd, log._fd)
    assert path.read_bytes() == content
    log.event("then", 2)
    log.close()
    os.close(fd)
    os.close(full)
    assert [record.key for record in records(path)] == ["kept", "then"]


LIMITED = """
import resource, sys
from mlperf_fast.errors import UserError
from mlperf_fast.submission.runlog import RunLog
log = RunLog(sys.argv[1])
log.event("first", 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (log.offset + int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    log.event("second", "x" * 200)
except UserError as error:
    print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.event("third", 3)
"""


@pytest.mark.parametrize(("room", "reason"), [(0, "File too large"), (17, "took 17 of")])
def test_a_write_that_the_system_cuts_short_is_taken_back(path, room, reason):
    done = subprocess.run([sys.executable, "-c", LIMITED, path, str(room)], capture_output=True, text=True, check=True)
    assert reason in done.stdout
    assert "bytes before it are whole" in done.stdout
    assert [record.key for record in records(path)] == ["first", "third"]


KILLED = """
import sys
from mlperf_fast.submission.runlog import RunLog
log = RunLog(sys.argv[1])
print("ready", flush=True)
while True:
    log.event("x", "y" * 3000)
"""


def test_kill_9_leaves_whole_records(tmp_path):
    for attempt, delay in enumerate((0.01, 0.05, 0.1)):
        path = tmp_path / f"result_{attempt}.txt"
        child = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        while not path.stat().st_size:
            time.sleep(0.001)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        content = path.read_bytes()
        assert content.endswith(b"\n")
        assert len(records(path)) == content.count(b"\n") > 0
        with RunLog(path, resume_at=len(content)) as log:  # the lock died with its process
            log.event("after", 1)
        assert records(path)[-1].key == "after"


def test_threads_do_not_mix_records(path):
    with RunLog(path) as log:
        threads = [threading.Thread(target=lambda i=i: [log.event(f"t{i}", n) for n in range(50)]) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.offset == path.stat().st_size
    found = records(path)
    for i in range(4):
        assert [record.value for record in found if record.key == f"t{i}"] == list(range(50))


def test_run_stop_reaches_the_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with RunLog(path) as log:
        log.event("a", 1)
        assert not synced
        log.end("run_stop", metadata={"status": "success"})
        assert log._fd in synced
        synced.clear()
        log.sync()
        assert log._fd in synced


def test_a_disk_that_refuses_to_sync_is_said(path, monkeypatch):
    def refuse(fd):
        raise OSError(5, "Input/output error")

    log = RunLog(path)
    log.event("a", 1)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="Input/output error"):
        log.sync()
    log.close()
