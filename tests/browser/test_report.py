"""The report in a browser: axe finds nothing, it fits a phone, every stop of the tab key is seen."""
import pytest

from amdlib.show.report import site as building
from tests.show.report.conftest import made  # noqa: F401
from tests.show.report.results import store_of

pytestmark = pytest.mark.browser
WIDTHS = {'laptop': (1366, 768), 'phone': (390, 844)}
LOOKS = [(device, scheme) for device in WIDTHS for scheme in ('light', 'dark')]


@pytest.fixture(scope='module')
def files(made, tmp_path_factory):  # noqa: F811
    """A page of each kind, by its kind."""
    store = store_of(made.parent)
    site = building.build(store, [('retinanet-amd-s0', 'retinanet-mgd-s0')]).parent
    published = building.publish(store, tmp_path_factory.mktemp('published') / 'report.html')
    return {'front': site / 'index.html', 'published': published, 'runs': site / 'runs.html',
            'run': site / 'runs' / 'retinanet-amd-s0.html', 'pair': site / 'compare' / '1.html',
            'notebook': published.parent / 'notebooks' / 'fig4.html'}


@pytest.fixture
def look(files, visit):
    """A kind of page -> that page, with everything unfolded."""
    def open_page(kind, device='laptop', scheme='light'):
        width, height = WIDTHS[device]
        page = visit(files[kind].as_uri(), viewport={'width': width, 'height': height}, color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        return page
    return open_page


KINDS = ['front', 'published', 'runs', 'run', 'pair', 'notebook']


@pytest.mark.parametrize('kind', KINDS)
def test_axe_finds_nothing(look, kind):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='no axe here: pip install '
                              'axe-playwright-python').Axe()
    found = {}
    for device, scheme in LOOKS:
        for one in axe.run(look(kind, device, scheme)).response['violations']:
            found[device, scheme, one['id']] = [node['html'][:200] for node in one['nodes']]
    assert not found


@pytest.mark.parametrize('kind', KINDS)
def test_it_fits_a_phone(look, kind):
    """What is wider scrolls in a box of its own."""
    assert look(kind, 'phone').evaluate('document.documentElement.scrollWidth') == 390


def test_a_phone_shows_each_verdict_without_scrolling_sideways(look):
    page = look('published', 'phone')
    cells = page.locator('.claims tbody :is(th, td)')
    assert cells.count() > 20
    for box in cells.evaluate_all('all => all.map((one) => one.getBoundingClientRect().toJSON())'):
        assert 0 <= box['left'] <= box['right'] <= 390


@pytest.mark.parametrize('kind', KINDS)
def test_every_stop_of_the_tab_key_is_seen_and_comes_in_the_order_of_the_page(look, kind):
    page, tops = look(kind), []
    for _ in range(60):
        page.keyboard.press('Tab')
        stop = page.evaluate("""() => { const at = document.activeElement, look = getComputedStyle(at);
          return at === document.body ? null : [at.getBoundingClientRect().top + scrollY, look.outlineStyle]; }""")
        if stop is None:
            break
        tops.append(stop[0])
        assert stop[1] != 'none', page.evaluate('document.activeElement.outerHTML.slice(0, 200)')
    assert len(tops) > 3
    assert tops[1:] == sorted(tops[1:])     # the first skips to the content
