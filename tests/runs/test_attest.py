"""attest.py: a line claims what its evidence shows, nothing else; an edit is attested only where no digit changes."""
import copy
import json
import shutil
import subprocess
import sys

import pytest

from amdlib import methods
from amdlib.errors import RunError
from amdlib.files import ROOT, read_json
from amdlib.paper.rows import ROWS
from amdlib.runs import attest, fingerprints
from amdlib.runs.attest import ALONE, PROBE, problems
from amdlib.runs.run import Run

# ---- a line and its evidence ------------------------------------------------------------------------------------


def of(method, side, several=False):
    return f'{side} {method or ALONE}{" x2" if several else ""}'


@pytest.fixture
def line():
    """A line as `attest` writes it, where every fingerprint has changed."""
    runs = {f'{PROBE.name} {Run.of(row, PROBE).id}': row.method for row in ROWS.values()}
    runs |= {f'mini {Run.of(row, "mini", 0, {"epochs": 1}).id}': ROWS[row].method for row in attest.SHORT_RUNS}
    runs |= {f'{PROBE.name} {Run.of(row, PROBE, 0, {"gpus": 2}).id}': ROWS[row].method for row in attest.SEVERAL}
    evidence = {run: {side: {
        'method': method or ALONE, 'fingerprint': of(method, side), 'several': of(method, side, True),
        'weights': f'w {run}', 'detections': f'd {run}', 'numbers': f'n {run}'} for side in ('old', 'new')}
        for run, method in runs.items()}
    claims = {f'{method or ALONE}{" in several processes" if several else ""}': {
        side: of(method, side, several) for side in ('old', 'new')}
        for method in (None, *methods.names()) for several in (False, True)}
    return json.loads(json.dumps({'old': 'a' * 40, 'new': 'b' * 40, 'fingerprints': claims, 'evidence': evidence}))


def test_an_honest_line_has_no_problem(line):
    assert problems(line) == []
    del line['fingerprints']['amd']
    assert problems(line) == []     # it may claim less


def test_a_line_of_another_time_has_no_problem(line):
    """Rows that came later are not among its evidence; those that went are."""
    del line['evidence']['probe retinanet-amd-mask-s0']
    line['evidence']['probe retinanet-older-s0'] = line['evidence']['probe retinanet-amd-s0']
    assert problems(line) == []


def change(run, side, key, value='other'):
    return lambda line: line['evidence'][run][side].update({key: value})


def claim(name, side, value='0' * 16):
    return lambda line: line['fingerprints'][name].update({side: value})


def remove(*runs):
    return lambda line: [line['evidence'].pop(run) for run in runs]


def no_old_side(line):
    line['evidence']['probe retinanet-amd-s0']['old'] = None


def claim_more(line):
    line['fingerprints']['new_method'] = {'old': '0' * 16, 'new': '1' * 16}


def claim_another(line):
    line['fingerprints']['amd'] = line['fingerprints']['fgd']


def no_evidence(line):
    line['evidence'].clear()


def no_claims(line):
    line['fingerprints'].clear()


@pytest.mark.parametrize(('tamper', 'told'), [
    (change('probe retinanet-amd-s0', 'new', 'weights'), 'probe retinanet-amd-s0: old and new differ'),
    (change('probe faster_rcnn-teacher-s0', 'old', 'detections'), 'probe faster_rcnn-teacher-s0: old and new differ'),
    (change('mini retinanet-amd+epochs=1-s0', 'old', 'numbers'), 'mini retinanet-amd+epochs=1-s0: old and new differ'),
    (no_old_side, 'probe retinanet-amd-s0: old and new differ'),
    (remove('probe reppoints-baseline-s0'), 'probe reppoints-baseline-s0: not among the evidence'),
    (remove('probe faster_rcnn-fgd-s0'), 'probe faster_rcnn-fgd-s0: not among the evidence'),
    (remove(*(f'mini {row}+epochs=1-s0' for row in attest.SHORT_RUNS)), 'mini retinanet-amd+epochs=1-s0: not among'),
    (remove('probe retinanet-mgd+gpus=2-s0'), 'probe retinanet-mgd+gpus=2-s0: not among the evidence'),
    (claim('amd', 'old'), f'amd: no evidence of {"0" * 16} -> new amd'),
    (claim('alone', 'new'), f'alone: no evidence of old alone -> {"0" * 16}'),
    (claim('amd in several processes', 'old'), 'amd in several processes: no evidence'),
    (claim('alone in several processes', 'new'), 'alone in several processes: no evidence'),
    (change('probe reppoints-mgd-s0', 'old', 'fingerprint'), 'mgd: no evidence of old mgd -> new mgd'),
    (change('probe reppoints-mgd-s0', 'new', 'several'), 'mgd in several processes: no evidence'),
    (claim_more, 'new_method: no evidence'), (claim_another, 'amd: no evidence of old fgd -> new fgd'),
    (no_evidence, 'amd: no evidence'), (no_claims, 'it claims nothing')])
def test_tampering_is_found(line, tamper, told):
    before = copy.deepcopy(line)
    tamper(line)
    assert line != before
    assert any(problem.startswith(told) for problem in problems(line)), problems(line)


# ---- what is committed ------------------------------------------------------------------------------------------

LINES = read_json(fingerprints.ATTESTED) if fingerprints.ATTESTED.is_file() else []


@pytest.mark.parametrize('committed', LINES, ids=lambda line: line['new'][:10])
def test_a_committed_line_is_no_mere_text(committed):
    assert problems(committed) == []


@pytest.mark.slow
@pytest.mark.parametrize('committed', LINES, ids=lambda line: line['new'][:10])
def test_a_committed_lines_fingerprints_are_those_of_its_commits(committed, tmp_path):
    found = {}
    for side in ('old', 'new'):
        (tmp_path / side).mkdir()
        packed = subprocess.run(['git', '-C', str(ROOT), 'archive', committed[side], 'amdlib', 'data/paper_tables.csv'],
                                capture_output=True)
        if packed.returncode:
            pytest.skip(f'the history here lacks {committed[side]}')
        subprocess.run(['tar', '-x', '-C', str(tmp_path / side)], input=packed.stdout, check=True)
        found[side] = attest.fingerprints_at(tmp_path / side)
    for name, pair in committed['fingerprints'].items():
        assert pair == {side: found[side][name] for side in ('old', 'new')}


# ---- attesting --------------------------------------------------------------------------------------------------

def test_own_fingerprints_are_those_of_runs():
    found = attest.own_fingerprints()
    assert set(found) == {f'{name}{several}' for name in (ALONE, *methods.names())
                          for several in ('', ' in several processes')}
    for row in ROWS.values():
        for gpus, several in ((1, ''), (2, ' in several processes')):
            run = Run.of(row, 'mini', 0, {'gpus': gpus})
            assert found[f'{row.method or ALONE}{several}'] == fingerprints.code_fingerprint(run)


@pytest.mark.parametrize('now', [{'commit': 'a' * 40, 'clean': False}, {'commit': None, 'clean': None}])
def test_changes_that_are_not_committed_are_refused(monkeypatch, now):
    monkeypatch.setattr(fingerprints, 'commit', lambda: now)
    monkeypatch.setattr(attest, '_git', lambda *_: pytest.fail('git was asked'))
    with pytest.raises(RunError, match='commit the changes in amdlib/ first'):
        attest.attest()


def test_without_stale_records_there_is_nothing_to_attest(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprints, 'commit', lambda: {'commit': 'a' * 40, 'clean': True})
    monkeypatch.setattr(attest, '_git', lambda *_: 'a' * 40)
    monkeypatch.setattr(attest, 'ROOT', tmp_path)
    with pytest.raises(RunError, match='no record of another commit lies in results/mini: name the commit'):
        attest.attest()


def test_the_commit_of_most_records_is_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(attest, '_git', lambda *_: 'now')
    monkeypatch.setattr(attest, 'ROOT', tmp_path)
    for number, commit in enumerate(('a', 'b', 'b', 'now', 'now', 'now')):
        folder = tmp_path / 'results' / 'mini' / 'runs' / str(number)
        folder.mkdir(parents=True)
        (folder / 'record.json').write_text(json.dumps({'code': {'commit': commit}}))
    assert attest._commit_of_stale_records() == 'b'


def test_two_commits_with_the_same_fingerprints_are_not_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(attest, 'fingerprints_at', lambda _: attest.own_fingerprints())
    with pytest.raises(RunError, match='nothing that decides a number differs between the commits'):
        attest._pairs(tmp_path)
    monkeypatch.setattr(attest, 'fingerprints_at', lambda _: {**attest.own_fingerprints(), 'fgd': 'x', 'gone': 'y'})
    assert attest._pairs(tmp_path) == {'fgd': {'old': 'x', 'new': attest.own_fingerprints()['fgd']}}


def test_a_checkout_without_fingerprints_is_told(tmp_path):
    (tmp_path / 'amdlib').mkdir()
    (tmp_path / 'amdlib' / '__init__.py').touch()
    with pytest.raises(RunError, match="no fingerprints there: .*No module named 'amdlib.runs'"):
        attest.fingerprints_at(tmp_path)


# a probe of one row, so that it takes seconds
FEW = """
ROWS = {'retinanet-baseline': ROWS['retinanet-baseline']}
SHORT_RUNS = SEVERAL = ()
PROBE_IMAGES = ShapesSpec(train_images=8, test_images=2)
PROBE = replace(PROBE, image_px=(64, 64))


def _needed(claims):
    return []


def own_fingerprints():
    return {ALONE: fingerprints.fingerprint_of(None)}
"""
ATTEST = 'from amdlib.runs.attest import attest; from amdlib.words import show_log; show_log(); attest({old!r})'


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_edit_is_attested_only_where_no_digit_changes(tmp_path):
    """Really, in a repository of its own: an edit without effect is, another beginning of the random numbers is not."""
    kit = tmp_path / 'kit'
    shutil.copytree(ROOT / 'amdlib', kit / 'amdlib', ignore=shutil.ignore_patterns('__pycache__'))
    (kit / 'data').mkdir()
    shutil.copy(ROOT / 'data' / 'paper_tables.csv', kit / 'data')
    shutil.copy(ROOT / '.gitignore', kit)

    def git(*words):
        done = subprocess.run(['git', '-C', str(kit), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(file, old, new):
        text = (kit / 'amdlib' / file).read_text()
        assert old in text
        (kit / 'amdlib' / file).write_text(text.replace(old, new, 1))
        git('add', '.')
        git('commit', '-m', 'an edit')
        return git('rev-parse', 'HEAD')

    def attested(old):
        return subprocess.run([sys.executable, '-c', ATTEST.format(old=old)], cwd=kit, capture_output=True, text=True)
    git('init')
    git('config', 'user.name', 'a')
    git('config', 'user.email', 'a@b')
    with open(kit / 'amdlib' / 'runs' / 'attest.py', 'a') as file:
        file.write(FEW)
    first = commit('engine/training.py', 'runner.train()', '(runner.train())')
    second = commit('engine/training.py', '(runner.train())', 'runner.train() or None')

    told = attested(first)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-3000:]
    assert '1 runs have the same weights, detections and numbers' in told.stdout
    (line,) = read_json(kit / 'results' / 'attested.json')
    assert (line['old'], line['new'], list(line['evidence'])) == (first, second, ['probe retinanet-baseline-s0'])
    assert set(line['fingerprints']) == {ALONE}
    assert git('show', '--stat', '--format=%s', 'HEAD').startswith(f'Attested: the same digits as at {first[:10]}')
    assert git('status', '--porcelain') == ''
    assert len(git('worktree', 'list').splitlines()) == 1

    commit('engine/start.py', 'torch.manual_seed(stream(*names))', 'torch.manual_seed(1 + stream(*names))')
    told = attested(second)
    assert told.returncode == 1
    assert f'1 of 1 runs have other digits than at {second[:10]}: probe retinanet-baseline-s0; nothing is attested' in (
        told.stderr)
    assert len(read_json(kit / 'results' / 'attested.json')) == 1
    assert len(git('worktree', 'list').splitlines()) == 1
