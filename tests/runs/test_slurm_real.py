"""A tiny study through a real Slurm of one machine: `make test-slurm`. Requeueing takes Slurm two minutes."""
import os
from dataclasses import replace

import pytest

from amdlib.files import ROOT
from amdlib.paper.profiles import Network
from amdlib.runs import slurm
from amdlib.runs.batch import run_missing
from amdlib.runs.progress import read_progress
from amdlib.runs.run import Run
from amdlib.runs.signals import ASKED

from .conftest import equal, state_dict
from .slurm import OneNode

pytestmark = pytest.mark.slurm
REQUEUED_S = 240    # Slurm waits two minutes before a requeued entry starts


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    found = OneNode(tmp_path_factory.mktemp('slurm'))
    yield found
    found.down()


@pytest.fixture
def cluster(node, monkeypatch, tmp_path):
    """The Slurm that this test's commands speak to; no home that could be written."""
    node.use(monkeypatch)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('HOME', str(tmp_path / 'none'))
    yield node
    node.said('scancel', '--user', str(os.getuid()))


@pytest.fixture(scope='session')
def narrow(tiny):
    return replace(tiny, epochs={'student': 2}, teacher=Network(18, 8))


def run_of(name, profile, seed=0, **settings):
    return Run.of(f'retinanet-{name}', profile, seed, settings)


def ended(cluster, runs, store):
    """Whether none of the runs is in the queue any more."""
    claims = [slurm.read_claim(store.run_folder(run))['job'] for run in runs]
    return lambda: not slurm.ask(claims)


def on_cpu(store):
    return store.with_means(device='cpu')


def same(runs, store, other):
    """Whether two stores hold the same runs, bit for bit."""
    return all(store.record(run)['numbers'] == other.record(run)['numbers'] and equal(
        state_dict(store.run_folder(run)), state_dict(other.run_folder(run))) for run in runs)


def test_a_study_comes_back_as_the_local_pool_makes_it(cluster, store, narrow, tmp_path, said):
    """Students after their teacher; one entry that fails; another batch at once; folders with names of every kind."""
    store = on_cpu(replace(store, profile=narrow, results=tmp_path / "a 'b' $(touch harm) %A%%"))
    runs = [run_of(name, narrow) for name in ('baseline', 'amd', 'mgd')]
    failing = run_of('baseline', narrow, 1)
    slurm.submit([*runs, failing], store.with_means(jobs=2), 'table1', '--time=10')
    (store.run_folder(failing) / 'job.json').write_text('{')
    assert slurm.submit(runs, store, 'again') is None      # another study that shares them
    found = slurm.states({run: store.state(run) for run in runs}, store)
    assert {state.name for state in found.values()} <= {'waiting', 'running'}
    assert found[runs[1]].name == 'waiting'
    cluster.wait_for(ended(cluster, [*runs, failing], store), 240)
    local = on_cpu(replace(store, results=tmp_path / 'local'))
    run_missing(runs, local)
    assert same([*runs, runs[1].teacher()], store, local)
    lost = slurm.states({failing: store.state(failing)}, store)[failing]
    assert lost.name == 'failed'
    assert 'no job file' in lost.why.splitlines()[-1]
    assert not list(tmp_path.rglob('harm'))


def test_an_entry_before_its_limit_is_queued_again_and_goes_on(cluster, store, narrow, tmp_path):
    """It gets the signal that `--signal=B:USR1@180` asks for; a cancelled entry is not queued again."""
    store = on_cpu(replace(store, profile=narrow))
    limited, cancelled = (run_of('baseline', narrow, seed, epochs=60) for seed in (0, 1))
    slurm.submit([limited, cancelled], store, 'long')
    folders = [store.run_folder(run) for run in (limited, cancelled)]
    jobs = [slurm.read_claim(folder)['job'] for folder in folders]
    for folder in folders:
        cluster.wait_for(lambda folder=folder: read_progress(folder).get('phase') == 'train', 120)
    cluster.said('scancel', '--batch', '--signal=USR1', jobs[0])
    cluster.said('scancel', jobs[1])
    cluster.wait_for(lambda: all(read_progress(folder).get('phase') == 'stopped' for folder in folders), 60)
    cluster.wait_for(lambda: jobs[1] not in slurm.ask(jobs), 90)
    found = slurm.states({run: store.state(run) for run in (limited, cancelled)}, store)
    assert (found[limited].name, found[cancelled].name) == ('requeued', 'failed'), found
    assert found[cancelled].why.splitlines()[-1].startswith(f'    | error: {cancelled.id}: stopped after step ')
    cluster.wait_for(lambda: store.state(limited).name == 'done', REQUEUED_S)
    local = on_cpu(replace(store, results=tmp_path / 'local'))
    run_missing([limited], local)
    assert same([limited], store, local)
    assert len(store.record(limited)['resumed_from']) == 1
    assert jobs[1] not in slurm.ask(jobs)
    assert not any((folder / ASKED).exists() for folder in folders)
    slurm.submit([cancelled], store, 'long')        # handed in again it goes on
    cluster.wait_for(lambda: store.state(cancelled).name == 'done', 120)
    assert len(store.record(cancelled)['resumed_from']) == 1


def test_entries_live_on_without_their_controller(cluster, store, narrow, tmp_path):
    """It is killed, and comes back: what the queue says is asked again, what the folder says was there all along."""
    store = on_cpu(replace(store, profile=narrow))
    run = run_of('baseline', narrow, 2, epochs=30)
    slurm.submit([run], store, 'orphan')
    cluster.wait_for(lambda: read_progress(store.run_folder(run)).get('phase') == 'train', 120)
    cluster.kill_controller()
    cluster.wait_for(lambda: store.state(run).name == 'done', 120)
    cluster.start_controller()
    cluster.wait_for(ended(cluster, [run], store), 120)
    assert slurm.states({run: store.state(run)}, store)[run].name == 'done'


def test_a_run_across_nodes_is_that_of_as_many_processes(cluster, store, narrow, tmp_path):
    """Two tasks of one node stand for two nodes, a torchrun each; it is cancelled in between and handed in again."""
    store = on_cpu(replace(store, profile=narrow))
    run = run_of('baseline', narrow, 4, gpus=2, batch_size=1, epochs=20)
    options = '--ntasks=2 --overcommit --time=10'
    slurm.submit([run], store, 'nodes', options)
    folder = store.run_folder(run)
    cluster.wait_for(lambda: read_progress(folder).get('phase') == 'train', 120)
    job = slurm.read_claim(folder)['job']
    assert f'{job}.0 2' in cluster.said('squeue', '--steps', '--noheader', '--format=%i %A').split('\n')
    cluster.said('scancel', job)
    cluster.wait_for(lambda: read_progress(folder).get('phase') == 'stopped', 60)
    cluster.wait_for(ended(cluster, [run], store), 90)
    slurm.submit([run], store, 'nodes', options)
    cluster.wait_for(lambda: store.state(run).name == 'done', 240)
    local = on_cpu(replace(store, results=tmp_path / 'local'))
    run_missing([run], local)
    assert same([run], store, local)
    assert len(store.record(run)['resumed_from']) == 1


def test_slurm_itself_tells_an_entry_of_its_limit(cluster, store, narrow):
    store = on_cpu(replace(store, profile=narrow))
    run = run_of('baseline', narrow, 3, epochs=2000)
    slurm.submit([run], store, 'limited', '--time=1 --signal=B:USR1@15')     # Slurm may be a minute early, or late
    folder = store.run_folder(run)
    cluster.wait_for(lambda: read_progress(folder).get('phase') == 'stopped', 180)
    cluster.wait_for(lambda: slurm.states({run: store.state(run)}, store)[run].name == 'requeued', 30)
    assert 'is queued again' in (folder / 'console.log').read_text()
