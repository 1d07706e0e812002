"""sweeps.py: cells, notes and files of a row over an option's values, by hand."""
import math

import pandas as pd
import pytest

from amdlib.errors import RunError
from amdlib.files import read_json, write_json
from amdlib.paper.profiles import PROFILES
from amdlib.runs.run import Run, sweep_runs
from amdlib.runs.store import Store
from amdlib.show import seeds, sweeps
from amdlib.show.tables import LIMITS
from amdlib.show.values import assumptions

from .records import finish, line


@pytest.fixture
def mini(dataset, tmp_path):
    return Store(PROFILES['mini'], dataset, tmp_path)


@pytest.fixture
def phi_runs():
    return sweep_runs('reppoints-amd', 'phi', (1.5, 0.5, 1.0), 'mini', (0, 1))


@pytest.fixture
def swept(phi_runs):
    """mAP 30 and 32 at phi = 0.5, 34 and 35 at 1.0 (the row itself), 33 and 33 at 1.5; mAR is one more."""
    scores = {0.5: (30.0, 32.0), 1.0: (34.0, 35.0), 1.5: (33.0, 33.0)}
    return pd.DataFrame([{**line('reppoints', 'amd', run.seed, scores[run.value('phi')][run.seed]), 'run': run.id}
                         for run in phi_runs])


SHARES = {'masked_share': pd.Series({0.5: 0.6, 1.0: 0.25, 1.5: 0.125})}


def test_a_sweep_by_hand(phi_runs, swept):
    cells = sweeps.tidy(phi_runs, swept, 'phi', SHARES)
    assert len(cells) == 3 * 3
    assert set(cells.option) == {'phi'}
    assert set(cells.seeds) == {2}
    by_metric = dict(list(cells.groupby('metric')))
    assert by_metric['mAP'].value.tolist() == [0.5, 1.0, 1.5]      # in order, whatever the order of the runs
    assert by_metric['mAP'].ours.tolist() == [31.0, 34.5, 33.0]
    assert by_metric['mAP'].sd.tolist() == pytest.approx([math.sqrt(2), math.sqrt(0.5), 0])
    assert by_metric['mAR'].ours.tolist() == [32.0, 35.5, 34.0]
    assert by_metric['masked_share'].ours.tolist() == [60.0, 25.0, 12.5]
    assert by_metric['masked_share'].sd.isna().all()
    assert by_metric['mAP'].runs.tolist() == ['reppoints-amd+phi=0.5-s0 reppoints-amd+phi=0.5-s1',
                                              'reppoints-amd-s0 reppoints-amd-s1',
                                              'reppoints-amd+phi=1.5-s0 reppoints-amd+phi=1.5-s1']
    of_map = by_metric['mAP'].set_index('value')
    assert of_map.difference.dropna().to_dict() == {0.5: -3.5, 1.5: -1.5}      # to the row's own value
    at_half = seeds.compare([30 - 34, 32 - 35])
    assert of_map.loc[0.5, ['low', 'high', 'n', 'question', 'verdict']].tolist() == [
        at_half.low, at_half.high, 2, 'B', at_half.verdict]
    assert of_map.reference.to_dict() == {0.5: 1.0, 1.0: '', 1.5: 1.0}
    assert set(sweeps.tidy(phi_runs, swept, 'phi').metric) == {'mAP', 'mAR'}


def test_without_the_rows_own_value_nothing_is_compared(phi_runs, swept):
    runs = [run for run in phi_runs if run.value('phi') != 1.0]
    cells = sweeps.tidy(runs, swept[swept.run.isin([run.id for run in runs])], 'phi')
    assert cells.difference.isna().all()
    assert list(sweeps.wide(cells)) == ['phi', 'mAP', 'mAR']


def test_a_sweep_for_reading(phi_runs, swept):
    wide = sweeps.wide(sweeps.tidy(phi_runs, swept, 'phi', SHARES))
    assert wide.values.tolist() == [[0.5, '31.0 ± 1.4', '-3.5 [-9.9, +2.9]', '32.0 ± 1.4', '60.0'],
                                    [1.0, '34.5 ± 0.7', '–', '35.5 ± 0.7', '25.0'],
                                    [1.5, '33.0 ± 0.0', '-1.5 [-7.9, +4.9]', '34.0 ± 0.0', '12.5']]
    assert list(wide) == ['phi', 'mAP', 'to phi = 1.0', 'mAR', 'masked positions, %']
    one_seed = [run for run in phi_runs if run.seed == 0]
    alone = sweeps.wide(sweeps.tidy(one_seed, swept[swept.seed == 0], 'phi'))
    assert alone.values.tolist() == [[0.5, '30.0', '-4.0', '31.0'], [1.0, '34.0', '–', '35.0'],
                                     [1.5, '33.0', '-1.0', '34.0']]


def test_a_sweep_of_words(swept):
    runs = sweep_runs('reppoints-amd', 'spatial', ('random', 'adaptive'), 'mini')
    records = swept[:2].assign(run=[run.id for run in runs])
    cells = sweeps.tidy(runs, records, 'spatial')
    assert cells[cells.metric == 'mAP'].value.tolist() == ['adaptive', 'random']


def test_notes_of_a_sweep_name_the_best_and_the_worst_value(phi_runs, swept, mini):
    cells = sweeps.tidy(phi_runs, swept, 'phi', SHARES)
    notes = sweeps.reading_notes(cells, mini, swept)
    assert '- RepPoints: highest mAP 34.5 at phi = 1, lowest 31.0 at 0.5.' in notes.splitlines()
    assert '- 4 test images, 2 seeds: in brackets the 95 % t interval of differences paired by seed' in notes
    assert "- mAP minus that at the row's own value, phi = 1.0: 0.5 -3.5 [-9.9, +2.9] (not resolved at n = 2" in notes
    assert f'- {assumptions()}' in notes.splitlines()
    assert "The paper's best point (COCO, RepPoints): 42.7 mAP and 58.8 mAR" in notes
    one_seed = [run for run in phi_runs if run.seed == 0]
    alone = swept[swept.seed == 0].assign(note='made with torch 2.0, now 3.0')
    notes = sweeps.reading_notes(sweeps.tidy(one_seed, alone, 'phi'), mini, alone)
    assert '- 3 runs made with torch 2.0, now 3.0: reppoints-amd' in notes
    assert '1 seed: the spread between seeds is not known' in notes
    assert sweeps.printed_best(cells) == {'mAP': 42.7, 'mAR': 58.8}


def test_notes_of_another_sweep_do_not_speak_of_the_papers_best_phi(swept, mini):
    for row, option in (('retinanet-amd', 'phi'), ('reppoints-amd', 'temperature')):
        runs = sweep_runs(row, option, (0.6, 0.7), 'mini')
        records = swept[2:4].assign(run=[run.id for run in runs], group=runs[0].row.group.name)
        notes = sweeps.reading_notes(sweeps.tidy(runs, records, option), mini, records)
        assert f'at {option} = 0.7' in notes
        assert 'best point' not in notes


def test_a_sweeps_files(phi_runs, swept, tmp_path):
    cells = sweeps.tidy(phi_runs, swept, 'phi', SHARES)
    written = sweeps.write(cells, '- notes', tmp_path / 'new' / 'fig4', 'Fig. 4')
    assert written == tmp_path / 'new' / 'fig4.md'
    assert sorted(path.name for path in written.parent.iterdir()) == ['fig4.csv', 'fig4.md']
    back, texts = pd.read_csv(written.with_suffix('.csv')), ['reference', 'question', 'verdict', 'left_out']
    pd.testing.assert_frame_equal(back.drop(columns=texts), cells.drop(columns=texts), atol=1e-6, check_dtype=False)
    text = written.read_text()
    assert text.startswith('# Fig. 4\n\namd of reppoints over phi; all numbers in percent.')
    first = next(line for line in text.splitlines() if line.startswith('| 0.5'))
    assert [part.strip() for part in first.split('|')[1:6]] == ['0.5', '31.0 ± 1.4', '-3.5 [-9.9, +2.9]', '32.0 ± 1.4',
                                                                '60.0']
    assert text.endswith(f'{LIMITS}\n\n- notes\n')


# ---- stored runs ------------------------------------------------------------------------------------------------

def test_a_sweep_of_stored_runs_shows_writes_and_checks_itself(store):
    runs = sweep_runs('retinanet-amd', 'temperature', (0.5, 2.0), store.profile)
    swept = sweeps.Sweep(runs, store, 'temperature')
    with pytest.raises(RunError, match='2 of 2 runs have no valid record'):
        swept.cells     # noqa: B018
    truth = read_json(store.dataset.test_ann)['annotations'][0]
    found = {**{key: truth[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9}
    for i, run in enumerate([Run.of('retinanet-teacher', store.profile), *runs]):
        finish(store, run, [found] * (i > 1))
    assert swept.cells.equals(sweeps.tidy(runs, swept.records, 'temperature', on_images=swept.on_images))
    assert set(swept.cells.question) == {'', 'A'}       # one seed
    assert '<td>2.0</td>' in swept._repr_html_()
    assert '| 2.0 ' in repr(swept)
    assert swept.figure().axes[-1].get_xlabel() == 'temperature'
    swept.check()
    assert [path.name for path in store.folder.iterdir() if path.name[0] != '.'] == ['runs']    # nothing unasked
    assert swept.write('sweep', 'A sweep').read_text().startswith('# A sweep')
    assert sorted(path.name for path in store.folder.glob('sweep.*')) == [
        'sweep.csv', 'sweep.md', 'sweep.png', 'sweep.svg']
    path = store.run_folder(runs[1]) / 'record.json'
    write_json(path, {**read_json(path), 'settings_hash': 'another'})
    with pytest.raises(RunError, match='temperature: its runs have other records by now'):
        swept.check()
