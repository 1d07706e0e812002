"""forking.py: a command in a forked child does what it does in a process of its own, and ends with its parent."""
import os
import sys
import time
from dataclasses import replace

import psutil
import pytest

from amdlib.errors import RunError
from amdlib.runs import forking
from amdlib.runs.batch import run_missing
from amdlib.runs.forking import Forker
from amdlib.runs.run import Run
from amdlib.runs.train import train
from amdlib.weights.reading import read_weights


@pytest.fixture(scope='module')
def forker():
    one = Forker({**os.environ, 'OMP_NUM_THREADS': '1'})
    yield one
    one.close()


def ended(child, within_s=60):
    until = time.monotonic() + within_s
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    return child.returncode


def test_a_child_is_a_process_with_words_surroundings_and_status_of_its_own(forker, tmp_path):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'NO_COLOR': 'x'}
    well, ill = (forker.start(words, tmp_path / words[0], env) for words in (['list'], ['job', '/nowhere']))
    assert well.pid != ill.pid
    assert (ended(well), ended(ill)) == (0, 1)
    assert 'retinanet-amd' in (tmp_path / 'list').read_text()
    assert (tmp_path / 'job').read_text().startswith('error: /nowhere: no job file')


def test_children_and_the_process_itself_end_with_the_one_that_wanted_them(tmp_path):
    """However that ends: nothing closes the pipe in an orderly way."""
    pipe = tmp_path / 'never written'
    os.mkfifo(pipe)
    forker = Forker(os.environ)
    child = forker.start(['job', str(pipe), '--ends-with-stdin'], tmp_path / 'console', os.environ)
    assert os.getpgid(child.pid) in (child.pid, os.getpgid(forker.process.pid))
    processes = [psutil.Process(child.pid), psutil.Process(forker.process.pid)]
    time.sleep(0.5)     # it waits for its job
    assert child.poll() is None
    forker.process.stdin.close()
    forker.lines.close()
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, [one.cmdline() for one in alive]


def test_a_child_is_killed_alone_and_is_lost_with_the_process(forker, tmp_path):
    pipe = tmp_path / 'never written'
    os.mkfifo(pipe)
    child = forker.start(['job', str(pipe)], tmp_path / 'console', os.environ)
    os.kill(child.pid, 9)
    assert ended(child) == -9
    forker.process.kill()
    forker.process.wait()
    with pytest.raises(RunError, match='gone'):
        forker.start(['list'], tmp_path / 'list', os.environ)


def test_an_edit_of_the_kit_makes_it_old(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/bin/cat')      # it waits
    (tmp_path / 'amdlib').mkdir()
    monkeypatch.setattr(forking, 'ROOT', tmp_path)
    (tmp_path / 'amdlib' / 'one.py').touch()
    time.sleep(0.02)
    forker = Forker(os.environ)
    assert forker.process.poll() is not None or forker.is_of_now()
    time.sleep(0.02)        # a file's time is coarser than the clock's
    (tmp_path / 'amdlib' / 'one.py').touch()
    assert not forker.is_of_now()
    forker.close()


@pytest.mark.slow
def test_runs_of_a_batch_are_forks_with_the_digits_of_a_run_alone(store, tmp_path, monkeypatch):
    runs, started, own = [Run.of('retinanet-baseline', store.profile, seed) for seed in (0, 1)], [], Forker.start
    monkeypatch.setattr(Forker, 'start', lambda self, *words: started.append(self) or own(self, *words))
    store = store.with_means(device='cpu', jobs=len(os.sched_getaffinity(0)))     # of one thread each, as here
    run_missing(runs, store)
    assert started == started[:1] * 2
    alone = replace(store, results=tmp_path / 'alone')
    for run in runs:
        train(run, alone)
        one, other = (read_weights(where.weights(run)) for where in (store, alone))
        assert all(one[name].equal(other[name]) for name in other)
        assert store.record(run)['numbers'] == alone.record(run)['numbers']
