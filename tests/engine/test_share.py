"""share.py: the factor with which distillation starts as a share of the loss, measured, then fixed."""
import copy

import pytest
import torch

from amdlib.engine.share import MEASURED_STEPS, StartingShare


def factors(rule, losses):
    return [float(rule(torch.tensor(detection), torch.tensor(distillation))) for detection, distillation in losses]


def losses(count):
    torch.manual_seed(0)
    return (torch.rand(count, 2) + 0.1).tolist()


def test_the_factor_is_that_of_the_means_so_far_and_then_stays():
    given = losses(MEASURED_STEPS + 5)
    found = factors(StartingShare(0.3).train(), given)
    for step in range(MEASURED_STEPS):
        detection, distillation = (sum(part) for part in zip(*given[:step + 1], strict=True))
        assert found[step] == pytest.approx(0.3 / 0.7 * detection / distillation, rel=1e-6)
    assert set(found[MEASURED_STEPS:]) == {found[MEASURED_STEPS - 1]}


def test_a_resumed_run_goes_on_measuring():
    given = losses(MEASURED_STEPS + 3)
    first, second = StartingShare(0.5), StartingShare(0.5)
    before = factors(first, given[:7])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert before + factors(second, given[7:]) == factors(StartingShare(0.5), given)


def test_a_look_in_between_measures_nothing():
    rule = StartingShare(0.3)
    factors(rule, losses(2))
    rule.eval()
    assert len(set(factors(rule, losses(5)))) == 1
    assert rule.measured[0] == 2


def test_no_distillation_at_all_is_no_division_by_zero():
    assert factors(StartingShare(0.3), [(1.0, 0.0), (1.0, 2.0)]) == [0.0, pytest.approx(0.3 / 0.7 * 2 / 2)]


@pytest.mark.parametrize('share', [0, 1, -0.1, float('nan')])
def test_other_shares_are_refused(share):
    with pytest.raises(ValueError, match='expected a number above 0 and below 1'):
        StartingShare(share)
