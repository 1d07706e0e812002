"""The pages for who comes by key or hears them: headings, names, alternatives, contrast."""
import re

import pytest

from amdlib.show.report import site as building
from amdlib.show.report.pages import TEMPLATES, percent
from tests.show.report.results import Page, store_of

CSS = (TEMPLATES / 'report.css').read_text()
# what is text, or tells something, on what it stands
ON = [(colour, ground) for colour in ('ink', 'soft', 'link', 'bad') for ground in ('paper', 'tint')]
DRAWN = ['here', 'other', *(f'c{n}' for n in range(8))]


@pytest.fixture(scope='module')
def pages(site, made, tmp_path_factory):
    published = building.publish(store_of(made.parent), tmp_path_factory.mktemp('single') / 'report.html')
    return {file: Page(file) for file in [*sorted(site.rglob('*.html')), published]}


def test_headings_and_regions_are_in_order_and_named(pages):
    for file, page in pages.items():
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r'h[1-6]', tag)]
        assert levels.count(1) == 1, file
        assert all(below <= above + 1 for above, below in zip([0, *levels], levels, strict=False)), (file, levels)
        names = [attrs['aria-label'] for _, attrs in page.tags if attrs.get('role') == 'region']
        assert len(names) == len(set(names)), (file, [name for name in names if names.count(name) > 1])
        assert [attrs['lang'] for tag, attrs in page.tags if tag == 'html'] == ['en']


def test_the_first_stop_skips_to_the_content(pages):
    for file, page in pages.items():
        assert next(iter(page.links)) == '#main', file
        assert 'main' in page.ids


def test_pictures_and_tables_say_what_they_show(pages):
    for file, page in pages.items():
        assert all(page.captions), file
        for tag, attrs in page.tags:
            if tag == 'img':
                assert attrs.get('alt', '').strip(), file
            if tag == 'svg':
                assert attrs.get('aria-hidden') == 'true' or attrs.get('role') == 'img' and attrs['aria-label']\
                    or 'overflow' in attrs, (file, attrs)
            if tag == 'th' and 'notebooks' not in file.parts:
                assert attrs.get('scope'), file


def test_keys_reach_what_scrolls_in_the_order_of_the_page(pages):
    for page in pages.values():
        assert all(attrs.get('tabindex', '0') in ('0', '-1') for _, attrs in page.tags)
        assert all(attrs.get('tabindex') == '0' for _, attrs in page.tags if attrs.get('role') == 'region')


def test_a_row_has_one_link(site):
    for name in ('index.html', 'runs.html'):
        assert max(Page(site / name).rows) == 1


def _colours(scheme):
    parts = re.findall(r':root \{(.*?)\}', CSS, re.S)
    return dict(re.findall(r'--([\w-]+): (#[0-9a-f]+)', parts[0])) | (
        dict(re.findall(r'--([\w-]+): (#[0-9a-f]+)', parts[1])) if scheme == 'dark' else {})


def _light(colour):
    digits = colour[1:] if len(colour) == 7 else ''.join(2 * digit for digit in colour[1:])
    parts = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """WCAG 2's."""
    low, high = sorted(map(_light, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast('#fff', '#000000') == pytest.approx(21)
    assert contrast('#777777', '#fff') == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_and_drawings_stand_out(scheme):
    colours = _colours(scheme)
    weak = {(one, ground): found for one, ground in ON
            if (found := contrast(colours[one], colours[ground])) < 4.5}
    weak |= {one: found for one in DRAWN if (found := contrast(colours[one], colours['paper'])) < 3}
    assert not weak
    for kind in ('found', 'false', 'missed'):      # over photographs, on a white halo
        (colour,) = re.findall(rf'\.box\.{kind} {{ stroke: (#[0-9a-f]+)', CSS)
        assert contrast(colour, '#fff') > 4.5


def test_no_meaning_stands_in_a_colour_alone():
    dashes = [re.search(rf'\.curve-{n} {{.*?(stroke-dasharray: [^;]+)?; ?}}', CSS)[1] for n in range(8)]
    assert len(set(dashes)) == 8
    assert len({re.search(rf'\.box\.{kind} {{[^}}]*?(stroke-dasharray: [^;]+)?; }}', CSS)[1]
                for kind in ('found', 'false', 'missed')}) == 3


@pytest.mark.parametrize(('value', 'text'), [(None, '–'), (float('nan'), '–'), (0.0, '0.0'), (-0.04, '0.0'),
                                             (-1.26, '−1.3')])
def test_nothing_is_told_from_zero(value, text):
    assert percent(value) == text
