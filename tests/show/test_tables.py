"""tables.py: cells, differences, notes and files of tables, by hand, beside the paper's numbers."""
import math
from dataclasses import replace

import pandas as pd
import pytest

from amdlib.errors import RunError, SettingError
from amdlib.evaluation import METRICS
from amdlib.paper import printed
from amdlib.paper.pairs import GROUPS
from amdlib.paper.profiles import PROFILES
from amdlib.paper.tables import TABLES
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import tables
from amdlib.show.seeds import compare
from amdlib.show.values import assumptions

from .records import line

NONE = '–'      # how a number that there is not is printed


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


# ---- tidy and for reading ---------------------------------------------------------------------------------------

def test_table_1_by_hand(records):
    cells = tables.tidy('table1', records)
    assert len(cells) == 4 * len(TABLES['table1'].metrics)
    amd = cell(cells, 'retinanet', 'amd', 'mAP')
    assert (amd.table, amd.label, amd.ours, amd.seeds, amd.difference, amd.paper) == ('I', 'AMD', 12.5, 2, 3.5, 41.3)
    assert amd.sd == pytest.approx(math.sqrt(4.5))  # 11 and 14, divisor n - 1
    assert amd.paper_difference == pytest.approx(41.3 - 37.4)
    assert amd.runs == 'retinanet-amd-s0 retinanet-amd-s1'
    assert amd.settings_hash == 'amd0 amd1'
    recall = cell(cells, 'retinanet', 'amd', 'AR_S')
    assert (recall.ours, recall.difference, recall.paper) == (13.5, 3.5, 38.2)
    assert recall.paper_difference == pytest.approx(38.2 - 33.1)
    small = cell(cells, 'retinanet', 'amd', 'AP_S')
    assert math.isnan(small.ours)
    assert math.isnan(small.difference)
    assert small.paper == 23.9
    base = cell(cells, 'retinanet', 'baseline', 'mAP')
    assert (base.ours, base.paper) == (9.0, 37.4)
    assert math.isnan(base.difference)
    assert math.isnan(base.paper_difference)


def test_a_teacher_has_its_printed_mean_and_no_gain(records):
    cells = tables.tidy('table1', records)
    teacher = cell(cells, 'retinanet', 'teacher', 'mAP')
    assert (teacher.ours, teacher.paper, teacher.seeds) == (20.0, 41.0, 1)
    assert math.isnan(teacher.sd)
    assert math.isnan(teacher.difference)
    assert math.isnan(teacher.paper_difference)
    assert math.isnan(cell(cells, 'retinanet', 'teacher', 'AP_M').paper)


def test_without_the_reference_there_is_no_difference(records):
    found = cell(tables.tidy(TABLES['table1'], records), 'faster_rcnn', 'mgd', 'mAP')
    assert math.isnan(found.difference)
    assert found.paper == 42.1
    assert found.paper_difference == pytest.approx(42.1 - 38.4)


def test_table_1_for_reading(records):
    cells = tables.tidy('table1', records)
    wide = tables.wide(cells, 'retinanet').set_index('')
    assert wide.index.tolist() == ['Teacher', 'baseline', 'AMD']
    assert list(wide) == ['mAP', 'gain', 'paper mAP', 'paper gain', 'AP_S', 'AP_M', 'AP_L', 'mAR', 'AR_S', 'AR_M',
                          'AR_L']
    assert wide.loc['AMD', ['mAP', 'gain', 'paper mAP', 'paper gain']].tolist() == [
        '12.5 ± 2.1', '+3.5 [-2.9, +9.9]', '41.3', '+3.9']     # 3 and 4: 3.5 +- 12.706 * 0.5
    assert wide.loc['AMD', ['AP_S', 'AP_M', 'mAR']].tolist() == ['– (23.9)', '13.5 (45.4)', '13.5 (57.4)']
    assert wide.loc['Teacher', ['mAP', 'gain', 'paper mAP', 'paper gain', 'AP_M']].tolist() == [
        '20.0', NONE, '41.0', NONE, '21.0']
    assert wide.loc['baseline', 'gain'] == NONE
    assert tables.wide(cells, 'faster_rcnn')['mAP'].tolist() == ['5.0']


def test_an_ablation_by_hand():
    """Differences are taken to the full method; Table II lacks a baseline, so Table I's stands there."""
    cells = tables.tidy('table2', ablation('retinanet'))
    assert len(cells) == 6 * 6
    assert set(cells.table) == {'II'}
    found = {row: cell(cells, 'retinanet', row, 'mAP') for row in cells.row.unique()}
    assert {row: (own.label, own.ours, own.difference) for row, own in found.items() if row != 'amd'} == {
        'baseline': ('baseline', 9.0, -4.0), 'amd-channel': ('channel only', 11.5, -1.5),
        'amd-mask': ('mask only', 13.5, 0.5), 'amd-unmasked': ('nothing masked', 12.5, -0.5),
        'amd-allmasked': ('everything masked', 9.5, -3.5)}
    assert (found['amd'].label, found['amd'].ours) == ('full', 13.0)
    assert math.isnan(found['amd'].difference)
    assert (found['baseline'].paper, found['amd'].paper, found['amd-mask'].paper) == (37.4, 41.3, 41.2)
    assert found['baseline'].paper_difference == pytest.approx(37.4 - 41.3)
    assert found['amd-channel'].paper_difference == pytest.approx(41.0 - 41.3)
    for control in ('amd-unmasked', 'amd-allmasked'):
        assert math.isnan(found[control].paper)
        assert math.isnan(found[control].paper_difference)
    half = cell(cells, 'retinanet', 'amd-mask', 'AP50')
    assert (half.ours, half.difference, half.paper) == (14.5, 0.5, 60.8)
    assert half.paper_difference == pytest.approx(60.8 - 61.0)
    assert math.isnan(cell(cells, 'retinanet', 'baseline', 'AP50').paper)       # Table I has no AP50


def test_an_ablation_for_reading():
    wide = tables.wide(tables.tidy('table2', ablation('retinanet')), 'retinanet').set_index('')
    assert list(wide) == ['mAP', 'to full', 'paper mAP', 'paper to full', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L']
    assert wide.loc['full'].tolist()[:5] == ['13.0 ± 1.4', NONE, '41.3', NONE, '14.0 (61.0)']
    assert wide.loc['channel only'].tolist()[:5] == ['11.5 ± 0.7', '-1.5 [-7.9, +4.9]', '41.0', '-0.3', '12.5 (61.0)']
    assert wide.loc['baseline'].tolist()[:5] == ['9.0 ± 1.4', '-4.0 [-4.0, -4.0]', '37.4', '-3.9', '10.0']
    assert wide.loc['everything masked'].tolist()[:5] == ['9.5 ± 0.7', '-3.5 [-9.9, +2.9]', NONE, NONE, '10.5']
    assert wide.loc['mask only', 'AP_S'] == '– (23.4)'
    assert wide.loc['nothing masked', 'AP_S'] == NONE


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
    assert wide.columns[1] == TABLES[table].difference
    assert wide.columns[3] == f'paper {TABLES[table].difference}'
    assert cells[cells.metric != 'mAP'].paper.isna().all()
    assert not wide.AP50.str.contains(r'\(').any()


def test_an_unknown_table_is_refused(records):
    with pytest.raises(SettingError, match="'table7'.*table1, table2"):
        tables.tidy('table7', records)


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


@pytest.mark.parametrize(('table', 'group', 'row'), [
    (table.number, group, key) for table in TABLES.values() for group, key in printed.paper_lines(table.number)])
def test_every_printed_line_stands_beside_its_row(table, group, row):
    """Joined by the key in data/paper_tables.csv: no label and no pattern."""
    cells = tables.tidy(next(name for name, own in TABLES.items() if own.number == table),
                        pd.DataFrame([line(group, row, 0, 10.0, label='of no table')]))
    csv = pd.read_csv(printed.CSV).set_index(['table', 'group', 'key']).loc[(table, group, row)]
    assert set(cells.label) == {csv['row']}
    for metric, value in cells.set_index('metric').paper.items():
        assert value == csv[metric] or (math.isnan(value) and math.isnan(csv[metric]))


def test_a_loss_of_your_own_is_a_line_without_the_papers_numbers(records):
    own = line('retinanet', 'mine.MyLoss', 0, 13.0, label='MyLoss')
    cells = tables.tidy('table1', pd.concat([records, pd.DataFrame([own])], ignore_index=True))
    found = cell(cells, 'retinanet', 'mine.MyLoss', 'mAP')
    assert (found.label, found.ours, found.difference, found.n) == ('MyLoss', 13.0, 5.0, 1)     # over seed 0
    wide = tables.wide(cells, 'retinanet').set_index('')
    assert wide.loc['MyLoss', ['mAP', 'gain', 'paper mAP', 'paper gain', 'AP_M']].tolist() == [
        '13.0', '+5.0', NONE, NONE, '14.0']


def test_two_runs_of_one_line_and_seed_are_refused(records):
    """Averaged as if they were seeds, runs with other settings would pass for the row."""
    twice = records.assign(seed=0)
    with pytest.raises(RunError, match='retinanet-baseline-s0, retinanet-baseline-s1, retinanet-amd-s0.*same line'):
        tables.tidy('table1', twice)


# ---- words ------------------------------------------------------------------------------------------------------

def test_groups_are_named_with_their_networks():
    assert tables.group_title('retinanet', 'mini') == (
        'RetinaNet, ResNet-18 (width 16), taught by RetinaNet, ResNet-18 (width 32)')
    assert tables.group_title('faster_rcnn', 'small') == (
        'Faster R-CNN, ResNet-18 (width 64), taught by Cascade R-CNN, ResNet-50 (width 64) without masks: '
        'the data have none')
    assert tables.group_title('faster_rcnn', PROFILES['paper']) == (
        'Faster R-CNN, ResNet-50, taught by Cascade Mask R-CNN, ResNeXt-101')


@pytest.mark.parametrize(('name', 'words'), [
    ('retinanet/retinanet_r101_fpn_2x_coco.py', 'RetinaNet, ResNet-101'),
    ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'RetinaNet, ResNet-50'),
    ('regnet/retinanet_regnetx-3.2GF_fpn_1x_coco.py', 'RetinaNet, RegNet-regnetx_3.2gf'),
    ('pvt/retinanet_pvtv2-b0_fpn_1x_coco.py', 'RetinaNet, PyramidVisionTransformerV2')])
def test_a_teachers_backbone_is_the_configs(monkeypatch, name, words):
    """A ResNet-101 was once printed as the paper's ResNeXt-101."""
    group = replace(GROUPS['retinanet'], teacher_config=f'mmdet::{name}')
    run = Run.of('retinanet-teacher', 'paper')
    assert tables.detector(replace(run, row=replace(run.row, group=group))) == words


def test_a_changed_profile_is_described_as_it_is():
    run = Run.of('retinanet-baseline', replace(PROFILES['paper'], student=PROFILES['mini'].student))
    assert tables.detector(run) == 'RetinaNet, ResNet-18 (width 16)'


# ---- notes ------------------------------------------------------------------------------------------------------

@pytest.fixture
def mini(dataset, tmp_path):
    return Store(PROFILES['mini'], dataset, tmp_path / 'new')


def notes_of(table, records, store):
    return tables.reading_notes(tables.tidy(table, records), store, records)


def test_notes_of_table_1_say_what_was_found(records, mini):
    notes = notes_of('table1', records[records.group == 'retinanet'], mini).splitlines()
    assert notes[0] == f'- {PROFILES["mini"].can_show}'
    assert notes[1].startswith('- 4 test images, 2 seeds: in brackets the 95 % t interval of differences paired by ')
    assert notes[2] == '- RetinaNet: the teacher is +11.0 mAP from the baseline (9.0).'
    visible = compare([3, 4]).verdict.partition(': ')[2]
    assert notes[3] == ('- RetinaNet: gains over *baseline* in mAP: not resolved: AMD +3.5 [-2.9, +9.9] (n = 2, '
                        f'{visible}).')
    assert notes[4] == f'- {assumptions()}'
    assert notes[5:] == [f'- Data: {note}.' for note in mini.dataset.notes]
    assert '(reasons: docs/assumptions.md)' in notes[4]


def test_notes_of_one_seed_warn_of_its_order(records, mini):
    notes = notes_of('table1', records[(records.group == 'retinanet') & (records.seed == 0)], mini)
    assert '1 seed: the spread between seeds is not known, so read no order into close numbers.' in notes
    assert '- RetinaNet: gains over *baseline* in mAP: one run each: AMD +3.0.' in notes


@pytest.mark.parametrize(('table', 'group', 'arm', 'reason'), [
    ('table2', 'retinanet', 'inherit', "a start from the teacher's neck and head, chance, and gradient clipping"),
    ('table2', 'retinanet', 'alone', 'chance and gradient clipping'),
    ('table4', 'faster_rcnn', 'alone', 'chance and gradient clipping')])
def test_notes_of_an_ablation_rank_the_arms_and_read_the_control(mini, table, group, arm, reason):
    notes = notes_of(table, ablation(group).assign(arm=arm), mini)
    ranked = ': differences to *full* in mAP: not resolved: mask only +0.5 [-5.9, +6.9] (n = 2, '
    assert ranked in notes                      # the baseline is no arm
    assert notes.index('mask only') < notes.index('channel only') < notes.index('everything masked -3.5')
    assert 'from the baseline (+0.5 mAP) does not come from' in notes
    assert f'What is left: {reason}' in notes


def test_in_the_arm_inherit_gains_are_over_the_one_that_starts_alike(records, mini):
    started = pd.DataFrame([line('retinanet', 'inherit', seed, 10.0 + seed, arm='inherit') for seed in (0, 1)])
    methods = records[records.row != 'mgd'].copy()
    methods.loc[methods.row == 'amd', 'arm'] = 'inherit'
    both = pd.concat([methods, started], ignore_index=True)
    cells = tables.tidy('table1', both)
    amd, inherit = (cell(cells, 'retinanet', row, 'mAP') for row in ('amd', 'inherit'))
    assert (amd.reference, amd.difference) == ('inherit', 2.0)      # 11 - 10 and 14 - 11
    assert (inherit.reference, inherit.difference) == ('baseline', 1.5)
    assert amd.paper_difference == pytest.approx(41.3 - 37.4)       # the paper prints no other
    notes = tables.reading_notes(cells, mini, both)
    assert 'RetinaNet: gains over *inherit* in mAP: not resolved: AMD +2.0' in notes
    alone = tables.tidy('table1', both.assign(arm='alone'))
    assert cell(alone, 'retinanet', 'amd', 'mAP').difference == 3.5
    lacking = notes_of('table1', methods, mini)
    assert '*inherit* is not among the runs, so nothing is compared with it here' in lacking


def test_pairs_are_of_one_seed_and_one_processor(records, mini):
    """A mean over other seeds, or a run from another processor, would mix chance into the difference."""
    mixed = records[records.group == 'retinanet'].copy()
    mixed.loc[(mixed.row == 'amd') & (mixed.seed == 1), 'machine'] = 'another CPU'
    mixed = pd.concat([mixed, pd.DataFrame([line('retinanet', 'amd', 2, 30.0)])], ignore_index=True)
    found = cell(tables.tidy('table1', mixed), 'retinanet', 'amd', 'mAP')
    assert (found.ours, found.seeds, found.difference, found.n) == (pytest.approx(55 / 3), 3, 3.0, 1)
    assert found.left_out == ('retinanet-amd-s1 (made on another CPU, retinanet-baseline-s1 on a CPU); '
                              'retinanet-amd-s2 (baseline has no seed 2)')
    notes = notes_of('table1', mixed, mini)
    assert f'RetinaNet: left out of the comparison: {found.left_out}.' in notes


def test_notes_of_data_and_of_other_versions_are_told(records, mini):
    noted = replace(mini, dataset=replace(mini.dataset, notes=('3 boxes were clipped',)))
    old = records[records.group == 'retinanet'].assign(note=['', 'made with torch 2.0, now 3.0', '', '', ''])
    notes = notes_of('table1', old, noted).splitlines()
    assert notes[-1] == '- Data: 3 boxes were clipped.'
    assert '- 1 run made with torch 2.0, now 3.0: retinanet-baseline-s0.' in notes


@pytest.mark.parametrize('table', TABLES)
def test_notes_hold_whichever_line_is_missing_or_alone(table, mini):
    """Neither the reference nor the teacher nor a control need be there, nor a loss that the paper has."""
    for group in TABLES[table].groups:
        rows = [row.name for row in TABLES[table].rows(group)]
        for kept in [[row] for row in rows] + [[row for row in rows if row != left_out] for left_out in rows]:
            records = pd.DataFrame([line(group, row, 0, 10.0 + i) for i, row in enumerate(kept)] + [
                line(group, 'mine.MyLoss', 0, 7.0, label='MyLoss')])
            notes = notes_of(table, records, mini)
            assert TABLES[table].reference in kept or 'nothing is compared with it here' in notes
            assert 'nan' not in notes
            tables.write(tables.tidy(table, records), notes, mini)


def test_notes_of_table_1_without_the_teacher(records, mini):
    notes = notes_of('table1', records[records.row != 'teacher'], mini)
    assert '- RetinaNet: baseline 9.0 mAP.' in notes
    assert '- Faster R-CNN: *baseline* is not among the runs, so nothing is compared with it here.' in notes


# ---- files ------------------------------------------------------------------------------------------------------

def test_a_tables_files_hold_every_cell_and_a_text_for_reading(mini):
    cells = tables.tidy('table2', ablation('retinanet'))
    written = tables.write(cells, '- found nothing', mini)
    assert written == mini.results / 'mini' / 'table2.md'
    assert sorted(path.name for path in written.parent.iterdir()) == ['table2.csv', 'table2.md']
    again = pd.read_csv(written.with_suffix('.csv'))
    empty = cells.replace('', float('nan'))     # as CSV has texts that there are not
    pd.testing.assert_frame_equal(again, empty, atol=1e-6, check_dtype=False)
    text = written.read_text()
    assert text.startswith('# Table II, profile `mini`\n\nThe parts of AMD: RetinaNet. ')
    assert '*to full*: difference in mAP to that row, in brackets its 95 % interval.' in text
    assert '**RetinaNet, ResNet-18 (width 16), taught by RetinaNet, ResNet-18 (width 32)**' in text
    (full,) = [line for line in text.splitlines() if line.startswith('| full ')]
    assert [part.strip() for part in full.split('|')[2:7]] == ['13.0 ± 1.4', NONE, '41.3', NONE, '14.0 (61.0)']
    assert text.endswith(f'{tables.LIMITS}\n\n- found nothing\n')


def test_table_1_has_a_part_a_group_and_keeps_the_last_digit(records, mini):
    text = tables.write(tables.tidy('table1', records), 'notes', mini).read_text()
    assert '*gain*: gain in mAP over the baseline that starts alike, in brackets its 95 % interval.' in text
    assert text.count('**') == 2 * 2
    assert text.index('**RetinaNet') < text.index('**Faster R-CNN')
    (teacher,) = [line for line in text.splitlines() if line.startswith('| Teacher ')]
    assert teacher.split('|')[2].strip() == '20.0'
