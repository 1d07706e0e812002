"""The one picture for a reader of half a minute."""
import numpy as np
import pytest
import torch

from amdlib.paper.claims import CLAIMS
from amdlib.runs.run import Run
from amdlib.show.features import Picture
from amdlib.show.report import summary
from amdlib.show.report.claims import Judged

PICTURE = Picture(1, 'a.png', np.zeros((32, 40, 3), np.uint8), torch.zeros(3, 32, 48),
                  torch.tensor([[0., 0., 16., 16.]]), ('disc',))
AMD = Run.of('retinanet-amd', 'mini')


def drawn(lines):
    attention = torch.arange(24.).view(4, 6) / 11.5
    return summary.draw(PICTURE, attention, (attention <= 1).float(), AMD, lines).axes


def test_it_shows_the_mask_and_each_claim_beside_the_papers():
    claim = next(claim for claim in CLAIMS if (claim.row, claim.over) == ('amd', 'mgd') and claim.section)
    line = Judged(claim, 'retinanet', 'primary', -1.25, -1.5, -1.0, 8, 'worse')
    *upper, lower = drawn([line])
    assert [axis.get_title() for axis in upper] == [
        'a scene', "the teacher's attention A: 0.0 to 2.0 (yellow)", 'orange: masked, A > 1']
    masked = upper[2].get_images()[1].get_array()
    assert int(np.isfinite(np.ma.filled(masked, np.nan)).sum()) == 12      # of 24 positions
    assert [text.get_text() for text in lower.texts] == ['-1.25 [-1.50, -1.00]  \nthe opposite here']
    paper = next(curve for curve in lower.lines if curve.get_marker() == 'D')
    assert paper.get_xdata() == pytest.approx([line.paper])
    (band,) = lower.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.25, 0.5))
    assert '8 seeds' in lower.get_xlabel()


def test_without_a_judged_claim_the_mask_alone_is_shown():
    *_, lower = drawn([])
    assert not lower.texts
