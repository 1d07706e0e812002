"""pairs.py: detectors and teachers are those of the method's page and of the paper's tables."""
import csv
from dataclasses import replace

import pytest

from amdlib.errors import SettingError
from amdlib.paper.pairs import GROUPS, find_group
from amdlib.paper.printed import CSV, paper_groups, paper_value
from amdlib.runs.originals import get_config
from amdlib.weights import published
from tests.conftest import shared

every_group = pytest.mark.parametrize('group', GROUPS.values(), ids=GROUPS)
papers_groups = pytest.mark.parametrize('group', [GROUPS[name] for name in paper_groups()], ids=paper_groups())


def page_line(group):
    """What the method's page says of a pair."""
    page = shared('paper/method.md').read_text()
    return next(line for line in page.splitlines() if line.startswith(f'| {group.name} |'))


def test_the_pairs_of_table_1_are_there_and_others_may_stand_beside_them():
    with open(CSV, newline='') as file:
        printed = {line['group']: line for line in csv.DictReader(file) if line['table'] == 'I'}
    assert [group for group in GROUPS if group in printed] == list(printed) == list(paper_groups())
    assert all(name == group.name for name, group in GROUPS.items())
    for name, line in printed.items():
        assert line['teacher'].startswith(GROUPS[name].teacher_label)
        assert line['student'].startswith(GROUPS[name].student_label)


@papers_groups
def test_detectors_and_teachers_are_those_of_the_methods_page(group):
    for value in (group.student_config, group.teacher_config, group.teacher_file):
        assert f'`{value}`' in page_line(group)


@papers_groups
def test_the_teachers_published_value_is_that_of_the_methods_page(group):
    stated = page_line(group).rstrip(' |').rpartition('|')[2].strip()
    assert float(stated) == paper_value('I', group.name, 'teacher', 'mAP')


@every_group
def test_a_teachers_file_is_known_by_its_digits(group):
    digits = published.digits(published.file_name(group.teacher_url))
    assert digits
    assert group.teacher_file.endswith(f'-{digits}.pth')
    assert group.teacher_url == f'https://download.openmmlab.com/mmdetection/v2.0/{group.teacher_file}'


@every_group
def test_a_pairs_levels_are_outputs_of_both_necks(group):
    for name in (group.student_config, group.teacher_config):
        neck = get_config(name).model.neck
        backbone_levels = len(neck.in_channels) - neck.get('start_level', 0)
        # beyond the backbone's levels FPN has further convolutions where it adds some; else it pools
        made = neck.num_outs if neck.get('add_extra_convs') else backbone_levels
        assert set(group.levels) <= set(range(made))
    assert group.one_stage == ('rpn_head' not in get_config(group.student_config).model)


@every_group
def test_a_pair_whose_weights_are_those_of_another_names_one(group):
    assert group.weights_of in ('', *GROUPS)


def test_a_new_pair_may_take_the_weights_of_another():
    group = replace(GROUPS['retinanet'], name='fcos', weights_of='reppoints')
    assert group.published_weights == 'reppoints'
    assert GROUPS['retinanet'].published_weights == 'retinanet'


def test_an_unknown_group_is_refused_with_those_there_are():
    with pytest.raises(SettingError) as told:
        find_group('retina')
    assert [word for word in ("'retina'", *GROUPS) if word not in str(told.value)] == []
