"""jobs.py: a job file says all that a process needs, as plain JSON, and is executed as it says."""
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.runs import jobs, notebooks
from amdlib.runs.recipe import Means
from amdlib.runs.run import Run
from amdlib.weights.published import Sources


@pytest.fixture
def executed(monkeypatch):
    """What would have been trained, executed and chosen."""
    done = []
    monkeypatch.setattr('amdlib.runs.train.train', lambda run, store, force: done.append((run, store, force)))
    monkeypatch.setattr(jobs, 'choose_device', lambda device: done.append(device))
    monkeypatch.setattr(notebooks, 'execute', lambda *words: done.append(words))
    return done


@pytest.mark.parametrize('row', ['retinanet-amd', 'outside'])
def test_a_job_is_the_run_its_store_and_means(store, tiny, mine, executed, tmp_path, weight_file, row):
    run = Run.of(f'retinanet-{mine}' if row == 'outside' else row, tiny, 3, {'epochs': 2, 'backbone': str(weight_file)})
    store = replace(store, means=Means('cpu', 2, 3, True, Sources((tmp_path,), ('https://there',), tmp_path / 'c'), 5),
                    data=tmp_path)
    command = jobs.write(jobs.of_run(run, store, True), tmp_path / 'new' / 'folder')
    assert command == [sys.executable, '-m', 'amdlib', 'job', f'{tmp_path}/new/folder/job.json']
    jobs.execute(Path(command[-1]))
    assert executed == ['cpu', (run, store, True)]


def test_a_job_of_a_notebook(executed, tmp_path):
    notebook, output, parameters = tmp_path / 'a.ipynb', tmp_path / 'out.ipynb', {'seed': 1, 'settings': {'phi': 0.7}}
    job = jobs.of_notebook(notebook, output, parameters, 'cuda:1')
    jobs.execute(Path(jobs.write(job, tmp_path)[-1]))
    assert executed == ['cuda:1', (notebook, output, parameters)]


def test_a_profile_of_ones_own_travels(store, tiny, executed, tmp_path):
    """Not by its name, which the other process would not know."""
    run = Run.of('retinanet-baseline', replace(tiny, name='narrow', neck_channels=32))
    jobs.execute(Path(jobs.write(jobs.of_run(run, store, False), tmp_path)[-1]))
    assert executed[1][0] == run
    assert read_json(tmp_path / 'job.json')['run']['profile']['neck_channels'] == 32


@pytest.mark.parametrize('content', [None, {}, [1], {'do': 'dance'}])
def test_what_is_no_job_is_told(executed, tmp_path, content):
    if content is not None:
        write_json(tmp_path / 'job.json', content)
    told = "do='dance': expected run or notebook" if content == {'do': 'dance'} else 'no job file'
    with pytest.raises(RunError, match=told):
        jobs.execute(tmp_path / 'job.json')
    assert executed == []


def test_a_process_ends_with_the_one_that_started_it(executed, tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr('amdlib.engine.processes.end_with', watched.append)
    monkeypatch.setattr(sys, 'stdin', type('Pipe', (), {'fileno': staticmethod(lambda: 7)}))
    file = Path(jobs.write(jobs.of_notebook(tmp_path, tmp_path, {}, None), tmp_path)[-1])
    jobs.execute(file)
    assert watched == []
    jobs.execute(file, ends_with_stdin=True)
    assert watched == [7]
