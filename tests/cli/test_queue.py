"""jobs, batch, gather and job --queued on the command line: what they print, pass on and refuse."""
import json
import os

import pytest

from amdlib.cli import main
from amdlib.errors import Stopped
from amdlib.runs import slurm
from amdlib.runs.run import table_runs


@pytest.fixture
def call(monkeypatch, store, capsys):
    """Words -> (exit status, stdout, stderr), on the tiny store."""
    monkeypatch.setattr('amdlib.cli.arguments.store', lambda given, stream=None: store)

    def run(*words):
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()
    return run


def test_jobs_are_listed_and_as_json(call, store):
    wanted = table_runs('table2', store.profile)
    status, out, _ = call('jobs', 'table2')
    assert status == 0
    assert {run.id for run in wanted} < {line.split()[0] for line in out.splitlines()}
    _, out, _ = call('jobs', 'table2', '--json')
    found = json.loads(out)
    assert [one['run'] for one in found][0] == 'retinanet-teacher-s0'
    assert {one['run'] for one in found} == {run.id for run in wanted} | {'retinanet-teacher-s0'}
    assert all(os.path.isfile(one['command'][-2]) for one in found)


def test_a_batch_is_written_or_submitted_with_what_was_given(call, store, monkeypatch):
    status, out, _ = call('batch', 'table2', 'table5', '--script-only', '--slurm=--partition=gpu --time=1:00')
    assert status == 0
    file = store.folder / 'slurm' / 'table2-table5-1' / 'batch.sh'
    assert '#SBATCH --partition=gpu --time=1:00\n' in file.read_text()
    assert 'submit it from ' in out
    asked = []
    monkeypatch.setattr(slurm, 'submit', lambda *words: asked.append(words[2:]))
    assert call('batch', 'table2', '--slurm=-p gpu')[0] == 0
    assert asked == [('table2', '-p gpu', True)]


@pytest.mark.parametrize(('words', 'told'), [
    (('--force',), 'an entry that is queued again would begin anew each time'),
    (('--slurm=--array=3',), "'--array=3' is said by the batch itself")])
def test_what_a_batch_cannot_do_is_refused(call, store, words, told):
    status, _, err = call('batch', 'table2', *words)
    assert (status, told in err) == (1, True)
    assert not (store.folder / 'slurm' / 'table2-1').exists()


def test_a_run_that_was_stopped_has_a_status_of_its_own(call, monkeypatch, tmp_path):
    def stop(*words):
        raise Stopped('stopped after step 3 of 9')
    monkeypatch.setattr('amdlib.runs.jobs.execute', stop)
    assert call('job', tmp_path / 'job.json', '--queued')[::2] == (75, 'error: stopped after step 3 of 9\n')


def test_gather_names_a_folder_without_runs(call, tmp_path):
    status, _, err = call('gather', tmp_path / 'none')
    assert (status, 'no records in it' in err) == (1, True)
