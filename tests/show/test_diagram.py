"""diagram.py: the drawing of the method shows every equation, and the page of the method shows this drawing."""
import matplotlib
import matplotlib.pyplot as plt
import pytest

from amdlib.files import ROOT
from amdlib.show import charts, diagram

matplotlib.use('Agg')


@pytest.fixture
def drawn():
    yield diagram.amd()
    plt.close('all')


def test_every_equation_and_every_part_that_trains_is_there(drawn):
    text = ' '.join(part.get_text() for part in drawn.axes[0].texts)
    assert all(f'Eq. {number}' in text for number in ('2, 3', 4, 5, 6, 7, 8))
    assert {name for name, (_, _, colour) in diagram.BOXES.items() if colour == diagram.TRAINED} == {
        'align', 'generation', 'clue'}
    assert [name for name, (_, _, colour) in diagram.BOXES.items() if colour == charts.COLOURS['masked']] == ['mask']


def test_arrows_join_boxes_and_nothing_of_the_teacher_is_made_from_the_student():
    followers = {source for source, *_ in diagram.ARROWS}
    assert {name for arrow in diagram.ARROWS for name in arrow[:2]} == set(diagram.BOXES)
    assert set(diagram.BOXES) - followers == {'loss'}
    of_student = {name for name, (_, _, colour) in diagram.BOXES.items() if colour == diagram.STUDENT}
    of_teacher = {name for name, (_, _, colour) in diagram.BOXES.items() if colour == diagram.TEACHER}
    assert not [arrow for arrow in diagram.ARROWS if arrow[0] in of_student and arrow[1] in of_teacher]


def test_the_page_of_the_method_shows_it_as_it_is_drawn_now(drawn, tmp_path):
    charts.save(drawn, tmp_path / 'amd', ['svg'])
    assert [path.name for path in tmp_path.iterdir()] == ['amd.svg']
    assert (tmp_path / 'amd.svg').read_text() == (ROOT / 'docs' / 'amd.svg').read_text()
    assert '(amd.svg)' in (ROOT / 'docs' / 'method.md').read_text()
