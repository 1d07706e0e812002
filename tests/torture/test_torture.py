"""Six of the points that `make torture` goes through all; and that the hook counts what it should."""
import pytest

from .run import chosen, tortured, undisturbed

POINTS = 6


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
    """Points and result of a run that nobody disturbs."""
    return undisturbed(tmp_path_factory.mktemp('calm') / 'run', alone=True)


@pytest.mark.slow
def test_every_kind_of_change_is_a_point(calm):
    names, (_, other) = calm
    assert other == []
    assert {name.split()[0] for name in names} == {'mkdir', 'replace', 'rename', 'unlink', 'open', 'rmdir'}
    for file in ('record.json', 'weights.pth', 'detections.json.gz', 'unfinished.json', 'epoch_1.pth', 'scalars.jsonl',
                 'features.npy', 'progress.json', 'manifest.json'):
        assert any(name.startswith('replace') and name.endswith(file) for name in names), file
    assert len(names) > 100


@pytest.mark.slow
@pytest.mark.parametrize('which', range(POINTS))
def test_a_kill_at_a_change_of_a_file_costs_nothing(calm, tmp_path, which):
    names, (wanted, _) = calm
    number, after = chosen(names, POINTS)[which]
    assert tortured(tmp_path / 'run', number, after, True, wanted) == '', f'{number} {names[number - 1]}'
