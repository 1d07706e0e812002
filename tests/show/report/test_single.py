"""single.py: one file, everything inside, below its size, no link that leads nowhere."""
import re
import shutil

import cv2
import numpy as np
import pytest

from amdlib.errors import RunError
from amdlib.show.report import single
from amdlib.show.report import site as building
from tests.show.report.results import Page, store_of


def test_one_file_holds_the_front_page_and_leads_to_the_notebooks_beside_it(made, tmp_path):
    file = building.publish(store_of(made.parent), tmp_path / 'docs' / 'report.html')
    page = Page(file)
    assert {link for link in page.links if not link.startswith('#')} == {'notebooks/fig4.html'}    # the others failed,
    assert all(link[1:] in page.ids for link in page.links if link.startswith('#'))                # or are of a sweep
    book = Page(file.parent / 'notebooks' / 'fig4.html')
    assert {link for link in book.links if not link.startswith('#')} == {'../report.html'}
    assert all(load.startswith('data:') for load in book.loads)
    assert all(load.startswith('data:') for load in page.loads)
    assert not re.search(r'<script|<iframe|@import|url\((?!data:)', file.read_text())
    assert 'Table I: The methods compared' in page.words
    assert any(tag == 'img' and attrs['src'].startswith('data:image/png;base64,') for tag, attrs in page.tags)
    assert file.stat().st_size < single.MOST_BYTES
    assert building.publish(store_of(made.parent)) == made / 'report.html'
    (made / 'report.html').unlink()
    shutil.rmtree(made / 'notebooks')


def test_notebooks_that_were_published_before_stay_linked(copy):
    """A clone has their pages and not the executed copies."""
    place, _ = copy
    building.publish(store_of(place.parent))
    (place / 'fig4.ipynb').unlink()
    assert Page(building.publish(store_of(place.parent))).links.keys() >= {'notebooks/fig4.html'}


@pytest.fixture
def noise(tmp_path):
    """A picture that hardly compresses, 1.6 MB, and a small one beside it."""
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / 'large.png'), rng.integers(0, 255, (600, 900, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'small.png'), np.zeros((9, 9, 3), np.uint8))
    return tmp_path


def test_a_picture_that_is_too_large_is_shown_the_smaller_and_told(noise, caplog):
    sources = {name: [noise / f'{name}.png'] for name in ('large', 'small')}
    small = single.uri((noise / 'small.png').read_bytes(), '.png')
    file = single.write(noise / 'page.html', sources, lambda inside: ' '.join(inside.values()))
    assert file.stat().st_size <= single.MOST_BYTES
    assert small in file.read_text()
    assert re.search(r'large: shown at \d+ px, so that the page stays below 2 MB', caplog.text)
    assert 'small: shown' not in caplog.text


def test_what_cannot_be_made_small_enough_is_refused(noise):
    with pytest.raises(RunError, match=r'page.html: 2.1 MB, more than 2 MB, of which the text is 2.1 MB'):
        single.write(noise / 'page.html', {}, lambda _: 'x' * 2_100_000)
    assert not (noise / 'page.html').exists()


def test_of_two_files_of_a_picture_the_smaller_is_inside(noise):
    (noise / 'small.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    inside = single.write(noise / 'page.html', {'small': [noise / 'small.svg', noise / 'small.png']},
                          lambda found: found['small']).read_text()
    assert inside.startswith('data:image/svg+xml;base64,')
