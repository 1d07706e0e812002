"""claims.py: every claim with the paper's figure, a verdict from files, or the command that would bring one."""
import json

import pandas as pd
import pytest

from amdlib.evaluation import METRICS
from amdlib.paper import planned
from amdlib.paper.claims import CLAIMS, Claim
from amdlib.paper.profiles import PROFILES
from amdlib.runs.run import Run
from amdlib.runs.store import State
from amdlib.show import report
from amdlib.show.report import claims
from amdlib.show.report.records import Entry, read_entries
from tests.show.report.results import Page, record_of, store_of


def test_every_planned_comparison_is_one_claim_and_every_claim_has_a_table():
    assert sorted(filter(None, (one.planned for one in CLAIMS))) == sorted(one.name for one in planned.PLANNED)
    by_name = {one.name: one for one in planned.PLANNED}
    for claim in CLAIMS:
        assert claim.groups
        assert all(claim.tables(group) for group in claim.groups)
        if claim.planned:
            assert (claim.row, claim.over) == (by_name[claim.planned].row, by_name[claim.planned].over)
            assert planned.GROUP in claim.groups


@pytest.mark.parametrize(('row', 'over', 'metric', 'group', 'told'), [
    ('amd', 'mgd', 'mAP', 'retinanet', ('I', 0.3)), ('amd', 'teacher', 'mAP', 'retinanet', ('I', 0.3)),
    ('amd', 'amd-channel', 'AP_S', 'retinanet', ('II', 0.2)), ('amd', 'amd-within', 'mAP', 'faster_rcnn', ('VI', 0.2)),
    ('amd', 'amd-permuted', 'mAP', 'retinanet', None)])
def test_the_papers_figure_is_read_from_its_tables(row, over, metric, group, told):
    assert Claim('', row, over, 'IV', metric).printed(group) == told
    assert Claim('', row, over, '', metric).printed(group) is None      # where it claims nothing


def write_plan(place, difference, low, high, n, verdict='worse'):
    pd.DataFrame([{'comparison': 'AMD over MGD', 'n': n, 'difference': difference, 'low': low - 0.1, 'high': high - 0.1,
                   'kind': 'primary', 'verdict': verdict}]).to_csv(place / 'significance.csv', index=False)
    pd.DataFrame([{'mean': difference, 'low': low, 'high': high, 'n': n}]).to_csv(
        place / 'significance_headline.csv', index=False)


def numbers(name):
    return [record_of(Run.of(f'retinanet-{name}', 'mini', seed))['numbers']['mAP'] for seed in (0, 1)]


def test_damaged_comparisons_are_left_out_and_hide_nothing(copy, caplog):
    place, build = copy
    for name in ('significance.csv', 'significance_headline.csv', 'bed.csv'):
        (place / name).write_bytes(b'comparison,low\nx,\xff\n')
    assert Page(build() / 'index.html').lines
    for name in ('significance.csv', 'significance_headline.csv', 'bed.csv'):
        assert f'{name} cannot be read' in caplog.text


def test_a_planned_comparison_stands_on_top_and_is_held_against_the_records(copy):
    place, build = copy
    difference = sum(a - b for a, b in zip(numbers('amd'), numbers('mgd'), strict=True)) / 2
    write_plan(place, difference, -1.2, -0.1, 2)
    page = Page(build() / 'index.html')
    line = next(line for line in page.lines if line[0].startswith('AMD is better than MGD'))
    assert line[1:] == ['+0.3 Table I, IV-B', percent(difference), '[−1.20, −0.10]', '2', '✗ the opposite here worse']
    assert '1 come out the other way' in page.words
    assert 'not what the record' not in page.words
    assert 'not judged yet: make plan' in page.words
    (told,) = [attrs['aria-label'] for tag, attrs in page.tags if tag == 'figure' and 'role' in attrs]
    assert f'AMD is better than MGD: {percent(difference, "+.1f")} (−1.2 to −0.1), in the paper +0.3' in told
    write_plan(place, difference + 0.5, -1.2, 0.3, 2)
    page = Page(build() / 'index.html')
    assert '⚠ 1 number is not what the record' in page.words
    assert f'the difference is {difference + 0.5:.6f} here, by the records {difference:.6f}' in page.words
    assert '○ not resolved not resolved at n = 2, seeds and images' in page.words
    write_plan(place, difference, -1.2, 0.3, 8)
    store = store_of(place.parent)
    assert claims.judged(store, read_entries(store))[0].problem == 'records of 2 of its 8 pairs are here'


def percent(value, form='+.2f'):
    return format(value, form).replace('-', '−')


def entry(row, seed, value, machine='a', **changes):
    run = Run.of(row, 'mini', seed)
    record = {**record_of(run), 'numbers': dict.fromkeys(METRICS, value), 'machine': {'cpu': machine}, **changes}
    return Entry(run.id, record, run=run, state=State('done'))


def explored(store, claim, *entries):
    lines = claims.judged(store, {one.id: one for one in entries})
    return next(line for line in lines if line.claim.says == claim and line.group == 'retinanet')


def test_a_claim_that_no_plan_asks_for_is_judged_from_the_records_that_count(tmp_path):
    store, says = store_of(tmp_path), 'The channel clue helps'
    assert explored(store, says).command == 'make reproduce-table2 GROUP=retinanet SEEDS="0 1 2 3 4"'
    both = [entry(f'retinanet-{row}', seed, value + seed / 10) for row, value in (('amd', 50.), ('amd-mask', 48.))
            for seed in (0, 1, 2)]
    line = explored(store, says, *both)
    assert (line.difference, line.n, line.outcome[1], line.kind) == (pytest.approx(2), 3, 'holds here', 'exploratory')
    assert explored(store, says, both[0], both[3]).outcome[1] == 'open'     # one seed says nothing of another run
    both[0].state = State('stale')
    assert explored(store, says, *both).n == 2
    other = entry('retinanet-amd', 0, 50., machine='b')
    assert 'made on b' in explored(store, says, other, *both[1:]).note


def test_every_student_is_compared_with_the_one_teacher(tmp_path):
    students = [entry('retinanet-amd', seed, 50. + seed / 10) for seed in (0, 1, 2)]
    line = explored(store_of(tmp_path), 'The student surpasses its teacher', *students,
                    entry('retinanet-teacher', 0, 55.))
    assert (line.difference, line.n, line.outcome[1]) == (pytest.approx(-4.9), 3, 'the opposite here')


def test_records_of_an_older_format_count_for_no_claim(made):
    entries = read_entries(store_of(made.parent))
    assert entries['retinanet-amd-s0'].record
    assert not entries['retinanet-amd-s0'].counts
    assert all(not line.verdict for line in claims.judged(store_of(made.parent), entries))


def test_at_another_profile_the_plan_is_not_asked(tmp_path):
    from dataclasses import replace
    store = replace(store_of(tmp_path), profile=PROFILES['small'])
    assert all(line.kind == 'exploratory' and 'PROFILE=small' in line.command for line in claims.judged(store, {}))


def test_a_folder_with_records_alone_has_a_report(tmp_path):
    run = Run.of('retinanet-amd', 'mini')
    folder = tmp_path / 'mini' / 'records' / run.id
    folder.mkdir(parents=True)
    (folder / 'record.json').write_text(json.dumps(record_of(run)))
    page = Page(report.build(store_of(tmp_path)))
    assert 'Of 1 run not the run itself is here but the kept record' in page.words
