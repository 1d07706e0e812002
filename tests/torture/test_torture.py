"""Six of the kills that `make torture` goes through all, a fault of each other kind that a process can be done; and
that the hook counts what it should."""
import pytest

from .run import Fault, kills, tortured, undisturbed

KILLS = 6


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
    """Points and result of a run that nobody disturbs."""
    return undisturbed(tmp_path_factory.mktemp('calm') / 'run')


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
@pytest.mark.parametrize('which', range(KILLS))
def test_a_kill_at_a_change_of_a_file_costs_nothing(calm, tmp_path, which):
    names, (wanted, _) = calm
    fault = kills(names, KILLS)[which]
    assert tortured(tmp_path / 'run', fault, wanted) == '', f'{fault} {names[fault.at - 1]}'


@pytest.mark.slow
@pytest.mark.parametrize('how', ['SIGTERM', 'SIGINT', 'full', 'remove data'])
def test_other_harm_is_told_in_a_line_and_costs_nothing(calm, tmp_path, how):
    names, (wanted, _) = calm
    fault = Fault(how, len(names) // 2)
    assert tortured(tmp_path / 'run', fault, wanted) == '', f'{fault} {names[fault.at - 1]}'
