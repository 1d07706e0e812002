"""queue.py: small queues by hand; what preemptions cost; a table as Slurm is handed it."""
import json
import math
from dataclasses import replace

import pytest

from amdlib.cli import main
from amdlib.errors import SettingError
from amdlib.paper.profiles import PROFILES
from amdlib.paper.rows import find_row
from amdlib.runs.run import Run, table_runs, with_teachers
from amdlib.runs.store import Store
from amdlib.scale import queue
from amdlib.scale.queue import Job, Queue, jobs_of, makespans, measured, simulate


def spans(out):
    return [(span.name, span.began_s, span.ended_s) for span in out.spans]


def students(count, **more):
    return [Job(f's{i}', 10, 1.0, **more) for i in range(count)]


# ---- by hand ----------------------------------------------------------------------------------------------------

def test_students_wait_for_teachers_and_take_free_nodes_in_order():
    jobs = [Job('t', 5, 2.0, start_s=1, test_s=4), *students(3, after=('t',), array=1), Job('b', 10, 3.0)]
    assert spans(simulate(jobs, Queue(nodes=2))) == [
        ('t', 0, 15), ('s0', 15, 25), ('b', 0, 30), ('s1', 25, 35), ('s2', 30, 40)]
    alone = simulate(jobs, Queue())
    assert alone.makespan_s == alone.node_s == 15 + 30 + 30


def test_a_limit_is_of_each_array():
    jobs = [*students(4), Job('a', 10, 1.0, array=1)]
    assert simulate(jobs, Queue(nodes=9)).makespan_s == 10
    assert spans(simulate(jobs, Queue(nodes=9, at_once=2))) == [
        ('s0', 0, 10), ('s1', 0, 10), ('a', 0, 10), ('s2', 10, 20), ('s3', 10, 20)]


def test_what_waits_for_ever_is_told():
    with pytest.raises(SettingError, match='^s0 would wait for ever$'):
        simulate(students(1, after=('gone',)), Queue())
    with pytest.raises(SettingError, match='nodes=0: expected more than 0'):
        Queue(nodes=0)


def test_who_is_told_goes_on_after_its_step():
    """A start, 4 steps, the signal, 0.5 s; back after 7; a start, a step's pictures read (4 is 1 in its epoch of 3)."""
    job = Job('a', 10, 1.0, start_s=2, test_s=3, epoch_steps=3, read_s=0.25)
    out = simulate([job, Job('b', 20, 1.0)], Queue(nodes=1, requeue_s=7, stop_s=0.5), {'a': [4]})
    assert spans(out) == [('a', 0, 6.5), ('b', 6.5, 26.5), ('a', 26.5, 26.5 + 2 + 0.25 + 6 + 3)]
    assert [(span.first, span.last, span.whole) for span in out.spans] == [(0, 4, False), (0, 20, True), (4, 10, True)]
    alone = simulate([job], Queue(requeue_s=7, stop_s=0.5), {'a': [4]})
    assert alone.spans[1].began_s == 6.5 + 7        # the node is idle meanwhile
    assert alone.makespan_s == alone.node_s + 7


def test_who_is_killed_goes_on_from_its_last_epoch():
    job = Job('a', 10, 1.0, start_s=2, test_s=3, epoch_steps=3)
    out = simulate([job], Queue(requeue_s=7, told=False, stop_s=0.5), {'a': [5, 4, 10]})
    assert [(span.first, span.last) for span in out.spans] == [(0, 3), (3, 3), (3, 10), (10, 10)]
    assert [span.ended_s - span.began_s for span in out.spans] == [7, 3, 9, 5]


# ---- by chance --------------------------------------------------------------------------------------------------

def test_preemptions_are_drawn_alike_for_a_seed_and_cost_what_they_must():
    jobs = students(50, epoch_steps=5)
    draws = [simulate(jobs, Queue(nodes=5, every_s=20, requeue_s=0, told=told, seed=seed)) for told in (True, False)
             for seed in (0, 0, 1)]
    assert spans(draws[0]) == spans(draws[1]) != spans(draws[2])
    made = sum(span.last - span.first for span in draws[0].spans)
    assert made == 500      # each step once
    preempted = sum(not span.whole for span in draws[0].spans)
    assert 10 < preempted < 50      # 500 node-seconds, one in 20
    # a step that is cut off is made again, of who is killed half an epoch
    assert 500 < draws[0].node_s < 500 + preempted
    assert draws[3].node_s > draws[0].node_s


def test_a_table_of_nodes_has_every_way():
    cells = makespans(students(20), [1, 20], Queue(every_s=30), draws=3)
    assert cells.way.tolist() == ['none', 'told', 'killed'] * 2
    alone = cells[cells.way == 'none'].set_index('nodes')
    assert alone.hours.tolist() == pytest.approx([200 / 3600, 10 / 3600])
    assert (cells.least <= cells.hours).all()
    assert (cells.hours <= cells.most).all()
    assert makespans(students(20), [1], Queue()).way.tolist() == ['none']
    assert list(queue.readable(cells).nodes) == ['1', '20']


# ---- of a table -------------------------------------------------------------------------------------------------

def test_jobs_are_the_runs_that_slurm_would_be_handed(store, tiny, finish_with):
    runs = table_runs('table1', tiny, 'retinanet', seeds=(0, 1))
    with pytest.raises(SettingError, match='no record tells how long a step takes of .*retinanet-amd'):
        jobs_of(runs, store, {})
    finish_with(Run.of('retinanet-amd', tiny, 7), train_s=8.0, steps=4, wall_s=11.0)
    finish_with(Run.of('retinanet-amd', tiny, 8), train_s=4.0, steps=4, wall_s=6.0)
    finish_with(Run.of('retinanet-teacher', tiny), train_s=0.1, steps=0, wall_s=5.1)
    times = measured([run.row for run in runs], store)
    assert times == {'retinanet-amd': (1.5, 2.5), 'retinanet-teacher': (0.0, 5.0)}
    jobs = jobs_of(runs, store, dict.fromkeys({run.row.id for run in runs}, (1.5, 2.5)), start_s=9)
    assert [job.name for job in jobs] == [run.id for run in with_teachers(runs)]
    by_name = {job.name: job for job in jobs}
    assert by_name['retinanet-amd-s1'] == Job('retinanet-amd-s1', 4, 1.5, 9, 2.5, 4, 0.0, ('retinanet-teacher-s0',), 1)
    assert (by_name['retinanet-baseline-s0'].after, by_name['retinanet-baseline-s0'].array) == ((), 0)


@pytest.fixture
def finish_with(store):
    """A run's record with what the queue reads of it."""
    def finish(run, **times):
        folder = store.run_folder(run)
        folder.mkdir(parents=True)
        (folder / 'record.json').write_text(json.dumps({
            'row': run.row.id, 'profile': store.profile.name, 'settings': run.settings, 'device': 'CPU',
            'peak_memory_bytes': None, **times}))
    return finish


def test_at_paper_hours_follow_from_steps_alone(tmp_path, capsys):
    assert main(['simulate', 'table1', '--profile', 'paper', '--group', 'retinanet', '--s-per-step', '0.5',
                 '--nodes', '1', '9', '--results', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    hours, students = 24 * 58633 * 0.5 / 3600, len(table_runs('table1', 'paper', 'retinanet')) - 1
    assert f'{students * hours:.1f}' in said
    assert f'{hours:.1f}' in said
    assert {path.name for path in (tmp_path / 'paper').iterdir()} == {
        'simulation.csv', 'simulation.png', 'simulation.svg'}
    store = Store(PROFILES['paper'], None, tmp_path)
    assert measured([find_row('retinanet-amd')], store) == {}
    assert main(['simulate', 'table1', '--profile', 'paper', '--results', str(tmp_path)]) == 1
    assert 'expected --s-per-step' in capsys.readouterr().err


def test_no_preemption_is_none():
    assert Queue().every_s == math.inf
    assert replace(Queue(), every_s=5).told
