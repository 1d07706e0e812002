"""scaling.py: exponents are those of a power; every size is measured, and the page says so."""
import numpy as np
import pandas as pd
import pytest

from amdlib.scale import scaling


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_power_whatever_one_round_does(power):
    sizes = (1, 2, 4)
    taken = 3 * np.array(sizes, float) ** power * np.array([[1.0], [1.0], [50.0]])
    assert scaling.exponent(sizes, taken) == pytest.approx(power)


@pytest.mark.slow
def test_scaling_is_measured_and_written(store, monkeypatch):
    monkeypatch.setattr(scaling, 'SIZES', {what: (1, 2) for what in scaling.SIZES} | {'images': (2, 4)})
    page = scaling.scaling(store, 'retinanet', rounds=1)
    cells = pd.read_csv(page.with_suffix('.csv'))
    assert list(cells.over.unique()) == list(scaling.SIZES)
    assert (cells.cpu_s > 0).all()
    assert '| images' in page.read_text()
    assert page.with_suffix('.png').stat().st_size > 10_000
