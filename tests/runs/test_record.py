"""record.py: a file that is no record, or has a field of another kind, is told so by whoever looks, and hides no other
run."""
import contextlib
import copy
import json

import pytest

from amdlib.errors import KitError
from amdlib.files import read_json, write_json
from amdlib.runs import targets
from amdlib.runs.keeping import keep
from amdlib.runs.record import FIELDS, PARTS, read_record
from amdlib.runs.run import Run
from amdlib.runs.times import expected_s
from amdlib.scale.export import profile_of
from amdlib.show import verify
from amdlib.show.folders import compare_folders
from amdlib.show.report.records import read_entries

OTHERS = (None, [1], ...)      # the last: left out
ALL = [(name,) for name in (*FIELDS, 'id', 'machine', 'method_file', 'wall_s', 'code_fingerprint', 'settings_key')] + [
    (name, part) for name, parts in PARTS.items() for part in parts] + [('numbers', 'mAP'), ('versions', 'torch')]


def looks(store, run):
    """All that reads records."""
    return [lambda: targets.status(targets.find_targets(['table6'], None), store, targets.Given()),
            lambda: [store.collect([run]) for _ in [0] if store.state(run).name == 'done'],
            lambda: verify.lines(verify.verify(store, [run.id])), lambda: profile_of(store.run_folder(run)),
            lambda: compare_folders(store.results, store.results, store), lambda: expected_s([run], store),
            lambda: keep(store), lambda: read_entries(store)]


@pytest.mark.parametrize('field', ALL, ids='.'.join)
def test_no_field_of_a_record_ends_a_look_at_it(store, tiny, finish, field, monkeypatch):
    monkeypatch.setattr(verify, '_data', lambda _: verify.Finding('data', 'fingerprint', verify.RECOMPUTED))
    run, other = Run.of('retinanet-amd', tiny), Run.of('retinanet-baseline', tiny)
    finish(run.teacher())
    finish(other)
    file = finish(run, id=run.id, row=run.row.id, seed=0, settings={}, machine={}) / 'record.json'
    whole = read_json(file)
    for value in OTHERS:
        record = copy.deepcopy(whole)
        holder = record if len(field) == 1 else record.setdefault(field[0], {}) or record
        if value is ...:
            holder.pop(field[-1], None)
        else:
            holder[field[-1]] = value
        file.write_text(json.dumps(record))
        for look in looks(store, run):
            with contextlib.suppress(KitError):     # told in a line
                look()
        assert store.state(other).name == 'done'


@pytest.mark.parametrize(('change', 'told'), [
    ({'settings': None}, 'settings is not what it should be'), ({'seed': 'x', 'row': 3}, 'row, seed is not what'),
    ({'numbers': {'mAP': 101}}, 'numbers.mAP is not'), ({'numbers': {'mAP': None}}, 'numbers.mAP is not'),
    ({'numbers': {'mAP': 1, 'AP50': float('nan')}}, 'numbers.AP50 is not'),
    ({'code': {'commit': None, 'clean': 'yes'}}, 'code.clean is not')])
def test_what_is_wrong_is_told(tmp_path, change, told):
    write_json(tmp_path / 'record.json', change)
    with pytest.raises(ValueError, match=f'^{told}'):
        read_record(tmp_path / 'record.json')


@pytest.mark.parametrize(('numbers', 'steps', 'is_one'), [
    ({'mAP': None, 'AP50': None}, 0, True), ({'mAP': None, 'AP50': 3.0}, 0, False), ({'mAP': None}, 10, False)])
def test_only_given_weights_may_be_without_a_number(tmp_path, numbers, steps, is_one):
    write_json(tmp_path / 'record.json', {'numbers': numbers, 'steps': steps})
    with contextlib.nullcontext() if is_one else pytest.raises(ValueError, match='numbers.mAP'):
        read_record(tmp_path / 'record.json')
