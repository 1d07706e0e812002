"""compare.py: two runs side by side, by hand."""
import pytest

from amdlib.errors import RunError, SettingError
from amdlib.evaluation import METRICS
from amdlib.files import read_json
from amdlib.runs.run import Run
from amdlib.show.compare import compare_runs
from amdlib.show.error_types import TYPES

from .records import finish


@pytest.fixture
def runs(store):
    """The first finds all objects, the second calls the half of them by another class."""
    truth = read_json(store.dataset.test_ann)
    right = [{**{key: one[key] for key in ('image_id', 'category_id', 'bbox')}, 'score': 0.9}
             for one in truth['annotations']]
    kinds = [one['id'] for one in truth['categories']]
    wrong = [{**one, 'category_id': next(kind for kind in kinds if kind != one['category_id'])} if i % 2 else one
             for i, one in enumerate(right)]
    made = Run.of('retinanet-baseline', store.profile), Run.of('retinanet-baseline', store.profile, 1)
    for run, found, cpu in zip(made, (right, wrong), 'ab', strict=True):
        finish(store, run, found, machine={'cpu': cpu, 'instructions': 'AVX2'})
    return made


def test_two_runs_side_by_side(store, runs):
    both = compare_runs(*runs, store, resamples=50)
    numbers = both.numbers
    assert numbers.index.tolist() == list(METRICS)
    assert numbers.loc['mAP', runs[0].id] == pytest.approx(100)
    assert numbers.loc['mAP', 'difference'] == pytest.approx(100 - numbers.loc['mAP', runs[1].id])
    assert numbers.loc['mAP', 'low'] <= numbers.loc['mAP', 'difference'] <= numbers.loc['mAP', 'high']
    assert both.errors.loc[('error: count', 'classification')].tolist()[0] == 0
    assert both.errors.loc[('error: count', 'classification'), runs[1].id] > 0
    assert set(both.errors.loc['error: dAP'].index) == set(TYPES)
    notes = '\n'.join(both.notes)
    assert 'Errors differ most in *classification*' in notes
    assert 'Made on different processors' in notes
    assert 'Seeds 0 and 1' in notes
    text = repr(both)
    assert '| mAP ' in text
    assert '| error: dAP ' in text
    assert all(f'- {line}' in text for line in both.notes)
    assert both._repr_html_().count('<table') == 2


def test_what_cannot_be_set_side_by_side_is_said(store, runs):
    with pytest.raises(SettingError, match='expected two runs'):
        compare_runs(runs[0], runs[0], store)
    with pytest.raises(RunError, match='retinanet-baseline-s2 is missing'):
        compare_runs(runs[0], Run.of('retinanet-baseline', store.profile, 2), store)
