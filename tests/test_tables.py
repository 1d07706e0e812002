"""tables.py: cells, differences, notes and files of tables and sweeps, by hand, beside the paper's numbers."""
import math
from dataclasses import replace

import pandas as pd
import pytest

from amdlib import tables
from amdlib.experiments import PROFILES, TABLES, Run, SettingError, assumptions, shorter, sweep_runs
from amdlib.results import METRICS

NONE = '–'      # how a number that there is not is printed


def line(group, row, seed, mean_ap, **other):
    """One line of `results.collect`: mAP as given, no objects for AP_S, every other number one more than mAP."""
    return {'group': group, 'row': row, 'label': 'not the label of a table', 'seed': seed,
            **{metric: mean_ap + 1 for metric in METRICS}, 'mAP': mean_ap, 'AP_S': None, **other,
            'run': f'{group}-{row}-s{seed}', 'settings_hash': f'{row}{seed}', 'data': 'd' * 16, 'commit': 'c0ffee'}


@pytest.fixture
def records():
    """RetinaNet: teacher 20; baseline 8 and 10; AMD 11 and 14, with no small objects. Faster R-CNN: MGD alone."""
    return pd.DataFrame([
        line('retinanet', 'teacher', 0, 20.0), line('retinanet', 'baseline', 0, 8.0),
        line('retinanet', 'baseline', 1, 10.0), line('retinanet', 'amd', 0, 11.0), line('retinanet', 'amd', 1, 14.0),
        line('faster_rcnn', 'mgd', 0, 5.0, AP_S=2.0)])


def ablation(group):
    """Two seeds of every arm; means: baseline 9, full 13, channel 11.5, mask 13.5, unmasked 12.5, all masked 9.5."""
    scores = {'baseline': (8, 10), 'amd': (12, 14), 'amd-channel': (11, 12), 'amd-mask': (13, 14),
              'amd-unmasked': (12, 13), 'amd-allmasked': (9, 10)}
    return pd.DataFrame([line(group, row, seed, float(score)) for row, own in scores.items()
                         for seed, score in enumerate(own)])


def cell(cells, group, row, metric):
    found = cells[(cells.group == group) & (cells.row == row) & (cells.metric == metric)]
    assert len(found) == 1
    return found.iloc[0]


# ---- the paper's numbers ----------------------------------------------------------------------------------------

def test_the_papers_tables_keep_what_is_not_reported_empty():
    assert tables.paper_table('I').AP50.isna().all()
    assert tables.paper_table('V').mAP.tolist() == [41.0, 41.2, 41.3]
    assert {number: len(tables.paper_table(number)) for number in ('I', 'II', 'III', 'IV', 'V', 'VI')} == {
        'I': 15, 'II': 3, 'III': 3, 'IV': 3, 'V': 3, 'VI': 2}


@pytest.mark.parametrize(('number', 'group', 'label', 'metric', 'value'), [
    ('I', 'retinanet', 'AMD', 'mAR', 57.4), ('II', 'retinanet', 'full', 'AP50', 61.0),
    ('III', 'reppoints', 'channel only', 'AP75', 46.4), ('IV', 'faster_rcnn', 'mask only', 'AP_L', 56.3),
    ('V', 'retinanet', 'MBConv', 'mAP', 41.0), ('VI', 'faster_rcnn', 'Within', 'mAP', 42.2),
    # the baseline stands in Table I alone, and serves the others
    ('I', 'reppoints', 'baseline', 'AP_S', 22.5), ('III', 'reppoints', 'baseline', 'AP_S', 22.5),
    ('II', 'retinanet', 'baseline', 'AP50', None),
    # not reported
    ('I', 'retinanet', 'AMD', 'AP50', None), ('V', 'retinanet', 'MBConv', 'AP_S', None),
    ('II', 'retinanet', 'everything masked', 'mAP', None), ('I', 'retinanet', 'AMD', 'AR1', None),
    # a teacher's mAP stands in its name
    *(('I', group, 'Teacher', 'mAP', value)
      for group, value in (('retinanet', 41.0), ('reppoints', 44.2), ('faster_rcnn', 47.3))),
    ('I', 'retinanet', 'Teacher', 'AP_M', None)])
def test_the_papers_value_of_a_cell(number, group, label, metric, value):
    assert tables.paper_value(number, group, label, metric) == value


# ---- tidy and for reading ---------------------------------------------------------------------------------------

def test_table_1_by_hand(records):
    cells = tables.tidy('table1', records)
    assert len(cells) == 4 * len(TABLES['table1'].metrics)
    amd = cell(cells, 'retinanet', 'amd', 'mAP')
    assert (amd.table, amd.label, amd.ours, amd.seeds, amd.difference, amd.paper) == ('I', 'AMD', 12.5, 2, 3.5, 41.3)
    assert amd.sd == pytest.approx(math.sqrt(4.5))  # 11 and 14, divisor n - 1
    assert amd.paper_difference == pytest.approx(41.3 - 37.4)
    assert amd.runs == 'retinanet-amd-s0 retinanet-amd-s1' and amd.settings_hash == 'amd0 amd1'
    recall = cell(cells, 'retinanet', 'amd', 'AR_S')
    assert (recall.ours, recall.difference, recall.paper) == (13.5, 3.5, 38.2)
    assert recall.paper_difference == pytest.approx(38.2 - 33.1)
    small = cell(cells, 'retinanet', 'amd', 'AP_S')
    assert math.isnan(small.ours) and math.isnan(small.difference) and small.paper == 23.9
    base = cell(cells, 'retinanet', 'baseline', 'mAP')
    assert (base.ours, base.paper) == (9.0, 37.4)
    assert math.isnan(base.difference) and math.isnan(base.paper_difference)


def test_a_teacher_has_the_mean_of_its_name_and_no_gain(records):
    cells = tables.tidy('table1', records)
    teacher = cell(cells, 'retinanet', 'teacher', 'mAP')
    assert (teacher.ours, teacher.paper, teacher.seeds) == (20.0, 41.0, 1)
    assert math.isnan(teacher.sd) and math.isnan(teacher.difference) and math.isnan(teacher.paper_difference)
    assert math.isnan(cell(cells, 'retinanet', 'teacher', 'AP_M').paper)


def test_without_the_reference_there_is_no_difference(records):
    found = cell(tables.tidy(TABLES['table1'], records), 'faster_rcnn', 'mgd', 'mAP')
    assert math.isnan(found.difference) and found.paper == 42.1
    assert found.paper_difference == pytest.approx(42.1 - 38.4)


def test_table_1_for_reading(records):
    cells = tables.tidy('table1', records)
    wide = tables.wide(cells, 'retinanet').set_index('')
    assert wide.index.tolist() == ['Teacher', 'baseline', 'AMD']
    assert list(wide) == ['mAP', 'gain', 'paper mAP', 'paper gain', 'AP_S', 'AP_M', 'AP_L', 'mAR', 'AR_S', 'AR_M',
                          'AR_L']
    assert wide.loc['AMD', ['mAP', 'gain', 'paper mAP', 'paper gain']].tolist() == [
        '12.5 ± 2.1', '+3.5', '41.3', '+3.9']
    assert wide.loc['AMD', ['AP_S', 'AP_M', 'mAR']].tolist() == ['– (23.9)', '13.5 (45.4)', '13.5 (57.4)']
    assert wide.loc['Teacher', ['mAP', 'gain', 'paper mAP', 'paper gain', 'AP_M']].tolist() == [
        '20.0', NONE, '41.0', NONE, '21.0']
    assert wide.loc['baseline', 'gain'] == NONE
    assert tables.wide(cells, 'faster_rcnn')['mAP'].tolist() == ['5.0']


def test_an_ablation_by_hand():
    """Differences are taken to the full method; Table II lacks a baseline, so Table I's stands there."""
    cells = tables.tidy('table2', ablation('retinanet'))
    assert len(cells) == 6 * 6 and set(cells.table) == {'II'}
    found = {row: cell(cells, 'retinanet', row, 'mAP') for row in cells.row.unique()}
    assert {row: (own.label, own.ours, own.difference) for row, own in found.items() if row != 'amd'} == {
        'baseline': ('baseline', 9.0, -4.0), 'amd-channel': ('channel only', 11.5, -1.5),
        'amd-mask': ('mask only', 13.5, 0.5), 'amd-unmasked': ('nothing masked', 12.5, -0.5),
        'amd-allmasked': ('everything masked', 9.5, -3.5)}
    assert (found['amd'].label, found['amd'].ours) == ('full', 13.0) and math.isnan(found['amd'].difference)
    assert (found['baseline'].paper, found['amd'].paper, found['amd-mask'].paper) == (37.4, 41.3, 41.2)
    assert found['baseline'].paper_difference == pytest.approx(37.4 - 41.3)
    assert found['amd-channel'].paper_difference == pytest.approx(41.0 - 41.3)
    for control in ('amd-unmasked', 'amd-allmasked'):
        assert math.isnan(found[control].paper) and math.isnan(found[control].paper_difference)
    half = cell(cells, 'retinanet', 'amd-mask', 'AP50')
    assert (half.ours, half.difference, half.paper) == (14.5, 0.5, 60.8)
    assert half.paper_difference == pytest.approx(60.8 - 61.0)
    assert math.isnan(cell(cells, 'retinanet', 'baseline', 'AP50').paper)       # Table I has no AP50


def test_an_ablation_for_reading():
    wide = tables.wide(tables.tidy('table2', ablation('retinanet')), 'retinanet').set_index('')
    assert list(wide) == ['mAP', 'to full', 'paper mAP', 'paper to full', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L']
    assert wide.loc['full'].tolist()[:5] == ['13.0 ± 1.4', NONE, '41.3', NONE, '14.0 (61.0)']
    assert wide.loc['channel only'].tolist()[:5] == ['11.5 ± 0.7', '-1.5', '41.0', '-0.3', '12.5 (61.0)']
    assert wide.loc['baseline'].tolist()[:5] == ['9.0 ± 1.4', '-4.0', '37.4', '-3.9', '10.0']
    assert wide.loc['everything masked'].tolist()[:5] == ['9.5 ± 0.7', '-3.5', NONE, NONE, '10.5']
    assert wide.loc['mask only', 'AP_S'] == '– (23.4)' and wide.loc['nothing masked', 'AP_S'] == NONE


@pytest.mark.parametrize(('table', 'group', 'scores', 'expected'), [
    ('table5', 'retinanet', {'amd-mbconv': 11.0, 'amd-conv1': 12.0, 'amd': 13.0}, {
        'MBConv': ['11.0', '-2.0', '41.0', '-0.3'], 'Dense Conv x1': ['12.0', '-1.0', '41.2', '-0.1'],
        'Dense Conv x2': ['13.0', NONE, '41.3', NONE]}),
    ('table6', 'faster_rcnn', {'amd': 13.0, 'amd-within': 13.25}, {
        'After': ['13.0', NONE, '42.4', NONE], 'Within': ['13.2', '+0.2', '42.2', '-0.2']})])
def test_tables_5_and_6_have_the_papers_map_only(table, group, scores, expected):
    cells = tables.tidy(table, pd.DataFrame([line(group, row, 0, score) for row, score in scores.items()]))
    wide = tables.wide(cells, group).set_index('')
    assert {label: own.tolist()[:4] for label, own in wide.iterrows()} == expected
    assert wide.columns[1] == TABLES[table].difference and wide.columns[3] == f'paper {TABLES[table].difference}'
    assert cells[cells.metric != 'mAP'].paper.isna().all() and not wide.AP50.str.contains(r'\(').any()


def test_an_unknown_table_is_refused(records):
    with pytest.raises(SettingError, match="'table7'.*table1, table2"):
        tables.tidy('table7', records)


@pytest.mark.parametrize(('value', 'form', 'text'), [
    (1.25, '+.1f', '+1.2'), (-0.34, '+.1f', '-0.3'), (20, '.1f', '20.0'), (None, '.1f', NONE),
    (float('nan'), '+.1f', NONE)])
def test_a_number_for_reading(value, form, text):
    assert tables.number(value, form) == text


def test_one_run_beside_the_paper():
    record = {'numbers': {metric: 10.04 + i for i, metric in enumerate(METRICS)} | {'AP_S': None}}
    beside = tables.beside_paper(Run.of('retinanet-amd', 'mini'), record)
    assert beside.index.tolist() == list(METRICS)
    assert beside.loc['mAP'].tolist() == ['10.0', '41.3', 'I II V']        # as AMD, full and Dense Conv x2
    assert beside.loc['AP50'].tolist() == ['11.0', '61.0', 'II']
    assert beside.loc['AP_S'].tolist() == [NONE, '23.9', 'I II']
    assert beside.loc['AR1'].tolist() == ['16.0', NONE, NONE]
    changed = tables.beside_paper(Run.of('retinanet-amd', 'mini', 0, {'phi': 0.7}), record)
    assert set(changed.paper) == set(changed.Table) == {NONE}      # the paper has no such run
    control = tables.beside_paper(Run.of('retinanet-amd-allmasked', 'mini'), record)
    assert control.loc['mAP'].tolist() == ['10.0', NONE, NONE]


# ---- words ------------------------------------------------------------------------------------------------------

def test_groups_are_named_with_their_networks():
    assert tables.group_title('retinanet', 'mini') == (
        'RetinaNet, ResNet-18 (width 16), taught by RetinaNet, ResNet-18 (width 24)')
    assert tables.group_title('faster_rcnn', 'small') == (
        'Faster R-CNN, ResNet-18 (width 64), taught by Cascade R-CNN, ResNet-50 (width 64) without masks: '
        'the data have none')
    assert tables.group_title('faster_rcnn', 'paper') == (
        'Faster R-CNN, ResNet-50, taught by Cascade Mask R-CNN, ResNeXt-101')


def test_notes_of_table_1_say_what_was_found(records, dataset):
    of_retinanet = records[records.group == 'retinanet']
    notes = tables.reading_notes(tables.tidy('table1', of_retinanet), PROFILES['mini'], dataset).splitlines()
    assert notes[0] == f'- {PROFILES["mini"].can_show}' and notes[1] == '- 4 test images, 2 seeds.'
    assert notes[2] == '- RetinaNet: the teacher is +11.0 mAP from the baseline (9.0); gains: AMD +3.5.'
    assert notes[3] == f'- {assumptions()}' and notes[4:] == [f'- Data: {note}.' for note in dataset.notes]


def test_notes_of_one_seed_warn_of_its_order(records, dataset):
    one_seed = records[(records.group == 'retinanet') & (records.seed == 0)]
    notes = tables.reading_notes(tables.tidy('table1', one_seed), PROFILES['mini'], dataset)
    assert '1 seed: the spread between seeds is not known, so read no order into close numbers.' in notes


@pytest.mark.parametrize(('table', 'group', 'reason'), [
    ('table2', 'retinanet', "a start from the teacher's neck and head, chance, and gradient clipping"),
    ('table4', 'faster_rcnn', 'chance and gradient clipping')])
def test_notes_of_an_ablation_rank_the_arms_and_read_the_control(dataset, table, group, reason):
    notes = tables.reading_notes(tables.tidy(table, ablation(group)), PROFILES['mini'], dataset)
    ranked = ': differences in mAP to *full* (13.0): mask only +0.5, nothing masked -0.5, channel only -1.5, ' \
             'everything masked -3.5.'
    assert ranked in notes                      # the baseline is no arm
    assert 'from the baseline (+0.5 mAP) does not come from' in notes and f'What is left: {reason}' in notes


def test_notes_of_data_are_told(records, dataset):
    noted = replace(dataset, notes=('3 boxes were clipped',))
    cells = tables.tidy('table1', records[records.group == 'retinanet'])
    assert tables.reading_notes(cells, PROFILES['mini'], noted).splitlines()[-1] == '- Data: 3 boxes were clipped.'


# ---- sweeps -----------------------------------------------------------------------------------------------------

@pytest.fixture
def phi_runs():
    return sweep_runs('reppoints-amd', 'phi', '1.5 0.5 1.0', 'mini', '0 1')


@pytest.fixture
def swept(phi_runs):
    """mAP 30 and 32 at phi = 0.5, 34 and 35 at 1.0 (the row itself), 33 and 33 at 1.5; mAR is one more."""
    scores = {0.5: (30.0, 32.0), 1.0: (34.0, 35.0), 1.5: (33.0, 33.0)}
    return pd.DataFrame([{**line('reppoints', 'amd', run.seed, scores[run.value('phi')][run.seed]), 'run': run.id}
                         for run in phi_runs])


SHARES = {'masked_share': pd.Series({0.5: 0.6, 1.0: 0.25, 1.5: 0.125})}


def test_a_sweep_by_hand(phi_runs, swept):
    cells = tables.sweep(phi_runs, swept, 'phi', SHARES)
    assert len(cells) == 3 * 3 and set(cells.option) == {'phi'} and set(cells.seeds) == {2}
    by_metric = {metric: own for metric, own in cells.groupby('metric')}
    assert by_metric['mAP'].value.tolist() == [0.5, 1.0, 1.5]      # in order, whatever the order of the runs
    assert by_metric['mAP'].ours.tolist() == [31.0, 34.5, 33.0]
    assert by_metric['mAP'].sd.tolist() == pytest.approx([math.sqrt(2), math.sqrt(0.5), 0])
    assert by_metric['mAR'].ours.tolist() == [32.0, 35.5, 34.0]
    assert by_metric['masked_share'].ours.tolist() == [60.0, 25.0, 12.5]
    assert by_metric['masked_share'].sd.isna().all()
    assert by_metric['mAP'].runs.tolist() == ['reppoints-amd+phi=0.5-s0 reppoints-amd+phi=0.5-s1',
                                              'reppoints-amd-s0 reppoints-amd-s1',
                                              'reppoints-amd+phi=1.5-s0 reppoints-amd+phi=1.5-s1']
    assert set(tables.sweep(phi_runs, swept, 'phi').metric) == {'mAP', 'mAR'}


def test_a_sweep_for_reading(phi_runs, swept):
    wide = tables.sweep_wide(tables.sweep(phi_runs, swept, 'phi', SHARES))
    assert wide.values.tolist() == [[0.5, '31.0 ± 1.4', '32.0 ± 1.4', '60.0'],
                                    [1.0, '34.5 ± 0.7', '35.5 ± 0.7', '25.0'],
                                    [1.5, '33.0 ± 0.0', '34.0 ± 0.0', '12.5']]
    assert list(wide) == ['phi', 'mAP', 'mAR', 'masked positions, %']
    one_seed = [run for run in phi_runs if run.seed == 0]
    alone = tables.sweep_wide(tables.sweep(one_seed, swept[swept.seed == 0], 'phi'))
    assert alone.values.tolist() == [[0.5, '30.0', '31.0'], [1.0, '34.0', '35.0'], [1.5, '33.0', '34.0']]


def test_a_sweep_of_words(swept):
    runs = sweep_runs('reppoints-amd', 'spatial', 'random adaptive', 'mini')
    records = swept[:2].assign(run=[run.id for run in runs])
    cells = tables.sweep(runs, records, 'spatial')
    assert cells[cells.metric == 'mAP'].value.tolist() == ['adaptive', 'random']


def test_notes_of_a_sweep_name_the_best_and_the_worst_value(phi_runs, swept, dataset):
    cells = tables.sweep(phi_runs, swept, 'phi', SHARES)
    notes = tables.sweep_notes(phi_runs, cells, PROFILES['mini'], dataset)
    assert '- RepPoints: highest mAP 34.5 at phi = 1, lowest 31.0 at 0.5.' in notes.splitlines()
    assert '- 4 test images, 2 seeds a value.' in notes.splitlines() and f'- {assumptions()}' in notes.splitlines()
    assert "The paper's best point (COCO, RepPoints): 42.7 mAP and 58.8 mAR" in notes
    one_seed = [run for run in phi_runs if run.seed == 0]
    notes = tables.sweep_notes(one_seed, tables.sweep(one_seed, swept[swept.seed == 0], 'phi'), PROFILES['mini'],
                               dataset)
    assert '1 seed a value: the spread between seeds is not known' in notes


def test_notes_of_another_sweep_do_not_speak_of_the_papers_best_phi(swept, dataset):
    for row, option in (('retinanet-amd', 'phi'), ('reppoints-amd', 'temperature')):
        runs = sweep_runs(row, option, '0.6 0.7', 'mini')
        records = swept[2:4].assign(run=[run.id for run in runs], group=runs[0].row.group.name)
        notes = tables.sweep_notes(runs, tables.sweep(runs, records, option), PROFILES['mini'], dataset)
        assert f'at {option} = 0.7' in notes and 'best point' not in notes


# ---- files ------------------------------------------------------------------------------------------------------

def test_a_tables_files_hold_every_cell_and_a_text_for_reading(tmp_path):
    cells = tables.tidy('table2', ablation('retinanet'))
    written = tables.write(cells, '- found nothing', tmp_path / 'new' / 'mini', 'mini')
    assert written == tmp_path / 'new' / 'mini' / 'table2.md'
    assert sorted(path.name for path in written.parent.iterdir()) == ['table2.csv', 'table2.md']
    again = pd.read_csv(written.with_suffix('.csv'))
    pd.testing.assert_frame_equal(again, cells, atol=1e-6, check_dtype=False)
    text = written.read_text()
    assert text.startswith('# Table II, profile `mini`\n\nThe parts of AMD: RetinaNet. ')
    assert '*to full*: difference in mAP to that row.' in text
    assert '**RetinaNet, ResNet-18 (width 16), taught by RetinaNet, ResNet-18 (width 24)**' in text
    (full,) = [line for line in text.splitlines() if line.startswith('| full ')]
    assert [part.strip() for part in full.split('|')[2:7]] == ['13.0 ± 1.4', NONE, '41.3', NONE, '14.0 (61.0)']
    assert text.endswith(f'{tables.LIMITS}\n\n- found nothing\n')


def test_table_1_has_a_part_a_group_and_keeps_the_last_digit(records, tmp_path):
    text = tables.write(tables.tidy('table1', records), 'notes', tmp_path, 'mini').read_text()
    assert '*gain*: gain in mAP over the baseline.' in text
    assert text.count('**') == 2 * 2 and text.index('**RetinaNet') < text.index('**Faster R-CNN')
    (teacher,) = [line for line in text.splitlines() if line.startswith('| Teacher ')]
    assert teacher.split('|')[2].strip() == '20.0'


def test_a_sweeps_files(phi_runs, swept, tmp_path):
    cells = tables.sweep(phi_runs, swept, 'phi', SHARES)
    written = tables.write_sweep(cells, '- notes', tmp_path / 'new' / 'fig4', 'Fig. 4')
    assert written == tmp_path / 'new' / 'fig4.md'
    assert sorted(path.name for path in written.parent.iterdir()) == ['fig4.csv', 'fig4.md']
    pd.testing.assert_frame_equal(pd.read_csv(written.with_suffix('.csv')), cells, atol=1e-6, check_dtype=False)
    text = written.read_text()
    assert text.startswith('# Fig. 4\n\namd of reppoints over phi; all numbers in percent.')
    first = next(line for line in text.splitlines() if line.startswith('| 0.5'))
    assert [part.strip() for part in first.split('|')[1:5]] == ['0.5', '31.0 ± 1.4', '32.0 ± 1.4', '60.0']
    assert text.endswith(f'{tables.LIMITS}\n\n- notes\n')


def test_a_changed_profile_is_described_as_it_is():
    run = Run.of('retinanet-baseline', shorter(PROFILES['paper'], student=PROFILES['mini'].student))
    assert tables.detector(run) == 'RetinaNet, ResNet-18 (width 16)'
