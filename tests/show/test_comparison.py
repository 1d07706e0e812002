"""tables.py: a table, an overview and what is behind a number, from runs in a store."""
from dataclasses import replace

import pytest

from amdlib.errors import RunError
from amdlib.evaluation import METRICS
from amdlib.files import read_json, write_json
from amdlib.paper.pairs import GROUPS
from amdlib.paper.rows import outside_row
from amdlib.runs import fingerprints
from amdlib.runs.run import Run, table_runs
from amdlib.runs.store import Store
from amdlib.show import tables

from .records import finish


@pytest.fixture(scope='module')
def made(dataset, tiny, tmp_path_factory):
    """A store with the runs of Table VI, one of whose detections is right."""
    store = Store(tiny, dataset, tmp_path_factory.mktemp('results'))
    truth = read_json(dataset.test_ann)['annotations'][0]
    found = {**{key: truth[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9}
    for i, run in enumerate([Run.of('faster_rcnn-teacher', tiny), *table_runs('table6', tiny)]):
        finish(store, run, [found] * (i > 1), versions={'torch': '1.0'} if i == 1 else fingerprints.versions())
    return store


@pytest.fixture
def comparison(made):
    return tables.Comparison('table6', made, table_runs('table6', made.profile))


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))


def test_a_comparison_is_the_table_of_its_runs(comparison):
    assert comparison.cells.equals(tables.tidy('table6', comparison.records, comparison.on_images))
    assert list(comparison.cells.row.unique()) == ['amd', 'amd-within']
    assert comparison.notes == tables.reading_notes(comparison.cells, comparison.store, comparison.records)
    assert 'made with torch 1.0, now' in comparison.notes
    shown = comparison._repr_html_()
    title = tables.group_title('faster_rcnn', comparison.store.profile)
    assert f'<b>{title}</b>' in shown
    assert '<td>After</td>' in shown
    assert f'**{title}**' in repr(comparison)
    (axis,) = comparison.figure().axes
    assert comparison.figure() is comparison.figure()      # drawn twice, a notebook would show it twice
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['Within']


def test_a_comparison_writes_only_when_it_is_told_to(comparison):
    folder = comparison.store.folder
    before = visible(folder)
    assert [comparison.notes, comparison.figure(), repr(comparison)]
    assert before == visible(folder) == ['runs']
    written = comparison.write()
    assert visible(folder) == [
        'runs', 'table6.csv', 'table6.md', 'table6.png', 'table6.svg']
    assert written == folder / 'table6.md'
    assert comparison.notes in written.read_text()
    assert repr(comparison) in written.read_text()


@pytest.mark.parametrize(('settings', 'variant'), [
    ({}, ''), ({'factor': 0.3}, 'calibrated'), ({'inherit': True}, 'inherit'),
    ({'inherit': True, 'factor': 0.3}, 'inherit_calibrated'), ({'factor': 1.0}, '')])
def test_another_arm_and_other_weights_make_files_of_their_own(store, settings, variant):
    profile = replace(store.profile, arm='alone')
    runs = [Run.of(f'retinanet-{row}', profile, 0, settings) for row in ('amd-mbconv', 'amd-conv1', 'amd')]
    comparison = tables.Comparison('table5', replace(store, profile=profile), runs, resamples=0)
    assert comparison.variant == variant
    for run in [runs[0].teacher(), *runs]:
        finish(store, run)
    stem = f'table5_{variant}' if variant else 'table5'
    assert comparison.write() == store.folder / f'{stem}.md'
    assert {path.name for path in store.folder.glob('table5*')} == {
        f'{stem}{kind}' for kind in ('.csv', '.md', '.png', '.svg')}
    title = (store.folder / f'{stem}.md').read_text().splitlines()[0]
    assert title == '# Table V, profile `mini`' + (f': {tables.VARIANTS[variant]}' if variant else '')


def test_pooled_gains_are_told(store):
    store = replace(store, profile=replace(store.profile, arm='alone'))
    runs = [Run.of(f'{group}-{row}', store.profile, seed) for group in ('retinanet', 'reppoints')
            for row in ('baseline', 'amd') for seed in (0, 1)]
    for i, run in enumerate(runs):
        if run.teacher():
            finish(store, run.teacher())
        finish(store, run, numbers={metric: 10.0 + i for metric in METRICS})
    told = [line for line in tables.Comparison('table1', store, runs).notes.splitlines() if 'pooled' in line]
    assert told == ['- all groups pooled, each with the same weight, gain in mAP: AMD +2.0 [+2.0, +2.0] (n = 4, '
                    'better).']


def test_a_comparison_is_read_at_its_first_use(store):
    comparison = tables.Comparison('table6', store, table_runs('table6', store.profile))
    with pytest.raises(RunError, match='2 of 2 runs have no valid record'):
        comparison.cells    # noqa: B018


def test_a_comparison_checks_every_number(comparison, caplog):
    comparison.check()
    assert caplog.messages[-1] == '2 runs: every number follows from the stored detections'
    run = comparison.runs[1]
    path = comparison.store.run_folder(run) / 'record.json'
    record = read_json(path)
    try:
        write_json(path, {**record, 'numbers': {**record['numbers'], 'AP50': 1.0}})
        with pytest.raises(RunError, match=rf'^{run.id}: AP50 is 1.0 in its record, by its detections [\d.]+$'):
            comparison.check()
        write_json(path, {**record, 'code': {'commit': 'another', 'clean': True}})
        with pytest.raises(RunError, match='table6: its runs have other records by now'):
            comparison.check()
    finally:
        write_json(path, record)


def test_an_overview_says_what_is_trained_and_where_it_stands(made):
    runs = [*table_runs('table6', made.profile), Run.of('faster_rcnn-fkd', made.profile)]
    found = tables.overview(runs, made)
    assert found.columns.tolist() == ['run', 'detector', 'epochs', 'method', 'now']
    assert found.detector.unique().tolist() == ['Faster R-CNN, ResNet-18 (width 8)']
    assert found.now[0].startswith('done (made with torch 1.0, now ')
    assert found.now.tolist()[1:] == ['done', 'missing']


def test_an_overview_names_a_loss_of_your_own_without_its_folder(store, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('from amdlib.methods.fitnet import FitNetLoss\n\n\nclass MyLoss(FitNetLoss):\n    pass\n')
    row = outside_row(GROUPS['retinanet'], f'{file}:MyLoss')
    found = tables.overview([Run.of(row, store.profile)], store)
    assert found.loc[0, ['run', 'method', 'now']].tolist() == ['retinanet-mine.MyLoss-s0', 'mine.py:MyLoss', 'missing']


def test_what_is_behind_a_run(made):
    first, second = table_runs('table6', made.profile)
    assert tables.behind(second, made)[''].to_dict() == {
        'settings': made.record(second)['settings_hash'], 'data': made.dataset.fingerprint, 'commit': 'c0ffee',
        'device': 'CPU', 'training': '1:15', 'folder': second.id}
    assert tables.behind(first, made).loc['versions', ''].startswith('made with torch 1.0, now ')
    with pytest.raises(RunError, match='faster_rcnn-fkd-s0 is missing'):
        tables.behind(Run.of('faster_rcnn-fkd', made.profile), made)
