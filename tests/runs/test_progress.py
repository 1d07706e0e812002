"""progress.py: what a run tells of its progress, on a terminal, in a log and in progress.json; and who is training."""
import datetime
import json
import logging
import os
import platform
import sys
import threading

import psutil
import pytest

from amdlib.files import write_json
from amdlib.runs import progress
from amdlib.runs.progress import ProgressReport, describe, quiet_s, read_progress, training_process
from amdlib.words import show_log


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    class Clock:
        now = 1000.0
        monotonic = staticmethod(lambda: Clock.now)
    monkeypatch.setattr(progress.time, 'monotonic', Clock.monotonic)
    return Clock


# ---- lines ------------------------------------------------------------------------------------------------------

def test_describe():
    assert describe('retinanet-amd-s0', 'train', 120, 600, 1 / 4.8, 100) == (
        'retinanet-amd-s0 train 120/600, 4.8 steps/s, 1:40 left')
    assert describe('a', 'train', 1, 9, 2.5, 20) == 'a train 1/9, 2.5 s/step, 0:20 left'
    assert describe('a', 'start', 0, 1, None, None) == 'a start 0/1'


@pytest.mark.parametrize(('s_per_step', 'quiet', 'text'), [
    (0.5, 432, 'a train 3/9, no step for 7:12'), (0.5, 59, 'a train 3/9, 2.0 steps/s, 1:00 left'),
    (None, 61, 'a train 3/9, no step for 1:01'), (100, 900, 'a train 3/9, 100.0 s/step, 1:00 left'),
    (100, 1001, 'a train 3/9, no step for 16:41')])     # slow steps are no hanging
def test_a_run_that_hangs_promises_no_time(s_per_step, quiet, text):
    assert describe('a', 'train', 3, 9, s_per_step, 60, quiet) == text


def test_a_line_every_n_seconds_into_a_log(tmp_path, clock, caplog):
    report = ProgressReport(tmp_path, 'a-run', line_every_s=20)
    with caplog.at_level(logging.INFO):
        for step in range(1, 101):   # one second a step
            clock.now += 1
            report('train', step, 100, 1.0)
    steps = [line.split()[2].rstrip(',') for line in caplog.messages]
    assert steps == ['1/100', '21/100', '41/100', '61/100', '81/100', '100/100']
    assert caplog.messages[1] == 'a-run train 21/100, 1.0 s/step, 1:19 left'


def test_one_line_is_rewritten_on_a_terminal(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    report = ProgressReport(tmp_path, 'a-run')
    show_log()
    for step in (1, 2, 3):
        clock.now += 1
        report('train', step, 3, 0.5)
    out = capsys.readouterr().out
    assert (out.count('\r'), out.count('\n'), out[-1]) == (3, 1, '\n')     # two of progress, and that is cleared
    assert out.rpartition('\r')[2].startswith('a-run train 3/3')


# ---- progress.json ----------------------------------------------------------------------------------------------

def test_progress_json_is_whole_whenever_it_is_read(tmp_path, clock):
    report, broken, seen, stop = ProgressReport(tmp_path, 'a-run'), [], set(), threading.Event()
    clock.now += 2
    report('train', 0, 1000, 0.1)

    def read():
        while not stop.is_set():
            try:
                seen.add(json.loads((tmp_path / 'progress.json').read_text())['step'])
            except (OSError, ValueError) as error:
                broken.append(error)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(1, 300):
            clock.now += 2
            report('train', step, 1000, 0.1, note='x' * 20000)
    finally:
        stop.set()
        reader.join()
    assert broken == []
    assert len(seen) > 1
    last = read_progress(tmp_path)
    assert (last['phase'], last['step'], last['steps'], last['pid'], last['host']) == (
        'train', 299, 1000, os.getpid(), platform.node())
    assert last['left_s'] == pytest.approx(70.1)
    assert quiet_s(last) < 5
    assert [path.name for path in tmp_path.iterdir()] == ['progress.json']


def test_progress_json_is_not_written_more_than_once_a_second(tmp_path, clock):
    report = ProgressReport(tmp_path, 'a-run')
    report('train', 1, 10, 0.1)
    clock.now += 0.5
    report('train', 2, 10, 0.1)
    assert read_progress(tmp_path)['step'] == 1
    report('train', 10, 10, 0.1)   # but the last step is
    assert read_progress(tmp_path)['step'] == 10
    report('failed', 0, 1, error='why')
    assert read_progress(tmp_path)['error'] == 'why'


@pytest.mark.parametrize('content', [None, '', '[1]', '{"phase": "train"}', '{"phase": '])
def test_what_cannot_be_read_is_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / 'progress.json').write_text(content)
    assert read_progress(tmp_path) == {}
    assert training_process(tmp_path) is None


def test_how_long_a_run_has_told_nothing():
    ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=7, seconds=12)
    assert quiet_s({'updated': ago.isoformat(timespec='seconds')}) == pytest.approx(432, abs=3)
    assert quiet_s({'updated': (ago + datetime.timedelta(days=1)).isoformat()}) == 0     # clocks of two machines
    for unknown in ({}, {'updated': 'yesterday'}, {'updated': '2026-01-01T00:00:00'}):
        assert quiet_s(unknown) == 0


# ---- who is training --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('changes', 'found'), [
    ({}, True), ({'phase': 'done'}, False), ({'phase': 'failed'}, False), ({'host': 'another machine'}, False),
    ({'started': 1.0}, False), ({'started': None}, False), ({'pid': 2 ** 22 + 1}, False), ({'pid': None}, False)],
    ids=str)
def test_the_process_that_trains_in_a_folder(tmp_path, changes, found):
    write_json(tmp_path / 'progress.json', {
        'phase': 'train', 'step': 3, 'steps': 9, 'pid': os.getpid(), 'host': platform.node(),
        'started': psutil.Process().create_time(), **changes})
    assert training_process(tmp_path) == (os.getpid() if found else None)


def test_a_report_is_the_training_process(tmp_path):
    ProgressReport(tmp_path, 'a')('start', 0, 2)
    assert training_process(tmp_path) == os.getpid()
