"""rows.py: the rows that data/paper_tables.csv, the registry and the controls ask for; rows of methods from outside."""
import csv

import pytest

from amdlib import methods
from amdlib.errors import SettingError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.printed import CSV
from amdlib.paper.rows import ROWS, VARIANTS, cannot, find_row, outside_row

CHOICES = ['spatial', 'channel', 'generation', 'channel_position']   # columns of the paper's tables, options of AMDLoss

with open(CSV, newline='') as file:
    PRINTED = list(csv.DictReader(file))


def loss_of(row):
    return methods.find_method(row.method)(16, 16, **row.options)


def choices_of(row):
    """What a row of AMD does, read off the loss and not off the row."""
    loss = loss_of(row)
    return [loss.spatial, 'none' if loss.clue is None else 'se', loss.generation.kind, loss.channel_position]


def keys(table):
    return list(dict.fromkeys(line['key'] for line in PRINTED if line['table'] == table))


# ---- which there are --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('group', GROUPS)
def test_a_groups_rows_are_table_1s_then_further_methods_then_variants(group):
    further = [name for name in methods.names() if name not in keys('I') and not cannot(GROUPS[group], name)]
    variants = [one.name for one in VARIANTS if one.only in (None, group)]
    teacher, baseline, *compared = keys('I')
    assert [row.name for row in ROWS.values() if row.group.name == group] == [
        teacher, 'untrained', baseline, 'inherit', *compared, *further, *variants]


def test_rows_are_known_by_group_and_name():
    assert all(key == row.id == row.reference == f'{row.group.name}-{row.name}' for key, row in ROWS.items())
    assert [row.kind for row in ROWS.values() if row.group.name == 'retinanet'][:5] == [
        'teacher', 'teacher', 'baseline', 'inherit', 'method']
    assert all(row.is_teacher == (row.kind == 'teacher') for row in ROWS.values())
    assert all((row.method is None) == (row.kind != 'method') for row in ROWS.values())


@pytest.mark.parametrize('line', PRINTED, ids=lambda line: f'{line["table"]}-{line["group"]}-{line["key"]}')
def test_every_line_of_the_paper_is_a_row_that_does_what_its_columns_say(line):
    row = ROWS[f'{line["group"]}-{line["key"]}']
    wanted = [line[choice] for choice in CHOICES]
    if row.method == 'amd':
        assert choices_of(row) == wanted
    else:
        assert wanted == [''] * len(CHOICES)


@pytest.mark.parametrize('group', GROUPS)
def test_the_controls_mask_nothing_and_everything(group):
    assert choices_of(ROWS[f'{group}-amd-unmasked']) == ['none', 'se', 'conv2', 'after']
    assert choices_of(ROWS[f'{group}-amd-allmasked']) == ['all', 'se', 'conv2', 'after']


@pytest.mark.parametrize('group', GROUPS)
def test_the_controls_take_away_what_the_mask_or_the_teacher_knows(group):
    assert choices_of(ROWS[f'{group}-amd-permuted']) == ['permuted', 'se', 'conv2', 'after']
    assert choices_of(ROWS[f'{group}-amd-inverted']) == ['inverted', 'se', 'conv2', 'after']
    assert [row.name for row in ROWS.values() if row.group.name == group and row.shuffled] == ['amd-shuffled']
    assert [row.name for row in ROWS.values() if row.group.name == group and row.taught_by == 'untrained'] == [
        'amd-untrained']


@pytest.mark.parametrize('group', GROUPS)
def test_what_is_ours_says_so(group):
    for name in ('spread', 'smoothed'):
        row = ROWS[f'{group}-amd-{name}']
        assert choices_of(row) == [name, 'se', 'conv2', 'after']
        assert row.label.startswith('ours: ')


@pytest.mark.parametrize('group', GROUPS)
def test_methods_and_inherit_have_a_teacher_and_nothing_else_has(group):
    for row in (row for row in ROWS.values() if row.group.name == group):
        assert bool(row.taught_by) == (row.kind in ('method', 'inherit'))
        assert not row.taught_by or ROWS[f'{group}-{row.taught_by}'].is_teacher


@pytest.mark.parametrize('row', [row for row in ROWS.values() if row.name.startswith('amd-')], ids=lambda row: row.id)
def test_a_variant_differs_from_the_full_method_in_one_choice_only(row):
    full, (one,) = ROWS[f'{row.group.name}-amd'], [one for one in VARIANTS if one.name == row.name]
    changes = one.options
    assert row.method == full.method == 'amd'
    assert len(changes) + (row.taught_by != full.taught_by) + (row.shuffled != full.shuffled) == 1
    different = [choice for choice, one, other in zip(CHOICES, choices_of(full), choices_of(row), strict=True)
                 if one != other]
    assert different == list(changes)
    loss, whole = loss_of(row), loss_of(full)
    assert (loss.alpha, loss.temperature, loss.phi) == (whole.alpha, whole.temperature, whole.phi)
    assert row.value('mask_ratio') == full.value('mask_ratio')


# ---- options and labels -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('row', [row for row in ROWS.values() if row.method in methods.names()], ids=lambda row: row.id)
def test_a_rows_options_are_the_published_ones_of_its_pair(row):
    published = methods.find_method(row.method).PUBLISHED.get(row.group.published_weights, {})
    changes = {one.name: one.options for one in VARIANTS}.get(row.name, {})
    assert row.options == {**published, **changes}
    for option, parameter in methods.options_of(row.method).items():
        assert row.value(option) == row.options.get(option, parameter.default)


@pytest.mark.parametrize('name', methods.names())
def test_a_method_is_labelled_by_its_class(name):
    (label,) = {ROWS[f'{group}-{name}'].label for group in GROUPS if not cannot(GROUPS[group], name)}
    assert label == methods.find_method(name).LABEL


# ---- by reference -----------------------------------------------------------------------------------------------

MINE = '''from amdlib.methods.level import LevelLoss


class Mine(LevelLoss):
    WEIGHT_EXPONENTS = {'weight': (1, 1)}
    PUBLISHED = {'retinanet': {'weight': 3.0}}

    def __init__(self, student_channels, teacher_channels, weight=1.0):
        super().__init__(student_channels, teacher_channels)
        self.weight = weight

    def weighted_loss(self, f_s, f_t, boxes, image_shapes):
        return self.weight * (f_s.mean() - f_t.mean()).abs()
'''


@pytest.fixture
def mine(tmp_path):
    """A file with a loss of one's own, in a folder with a dash, as `find_row` takes it."""
    file = tmp_path / 'my-losses' / 'own.py'
    file.parent.mkdir()
    file.write_text(MINE)
    return f'{file}:Mine'


@pytest.mark.parametrize('group', GROUPS)
def test_a_loss_from_outside_is_a_row_of_every_group(mine, group):
    row = find_row(f'{group}-{mine}')
    assert row == outside_row(GROUPS[group], mine)
    assert (row.id, row.name, row.label, row.kind) == (f'{group}-own.Mine', 'own.Mine', 'Mine', 'method')
    assert row.options == ({'weight': 3.0} if GROUPS[group].published_weights == 'retinanet' else {})
    assert find_row(row.reference) == row
    assert row.id not in ROWS


def test_a_path_is_taken_from_where_one_stands(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = find_row('retinanet-my-losses/own.py:Mine')
    assert row == find_row(f'retinanet-{mine}')
    assert row.reference == f'retinanet-{mine}'


@pytest.mark.parametrize('name', methods.names())
def test_every_method_has_a_control_with_another_pictures_features(name):
    for group in (group for group in GROUPS.values() if not cannot(group, name)):
        full, control = ROWS[f'{group.name}-{name}'], find_row(f'{group.name}-{name}-shuffled')
        assert control.shuffled
        assert (control.method, control.options, control.kind) == (full.method, full.options, 'method')
        assert find_row(control.reference) == control
        assert (control.id in ROWS) == (name == 'amd')


@pytest.mark.parametrize('reference', [
    'retinanet-adm-shuffled', 'retinanet-baseline-shuffled', 'retinanet-adm', 'amd', 'retina-amd', ''])
def test_an_unknown_row_is_refused_with_those_there_are(reference):
    with pytest.raises(SettingError) as told:
        find_row(reference)
    assert [word for word in (repr(reference), *ROWS, 'path/to/file.py:ClassName') if word not in str(told.value)] == []


@pytest.mark.parametrize(('reference', 'told'), [
    ('retinanet-no/such.py:Mine', 'no such file'), ('retinanet-{mine}er', "has no class 'Mineer'"),
    ('retinanet-{folder}/own.py', 'expected path/to/file.py:ClassName')])
def test_what_is_no_loss_is_told(mine, reference, told):
    with pytest.raises(SettingError, match=told):
        find_row(reference.format(mine=mine, folder=mine.rpartition('/')[0]))
