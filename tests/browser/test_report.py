"""The report in a browser: axe finds nothing, it fits a phone, every stop of the tab key is seen."""
import pytest

from amdlib.show.report import site as building
from tests.show.report.conftest import made  # noqa: F401
from tests.show.report.results import store_of

pytestmark = pytest.mark.browser
WIDTHS = {'laptop': (1366, 768), 'phone': (390, 844)}


@pytest.fixture(scope='module')
def files(made, tmp_path_factory):  # noqa: F811
    """A page of each kind, by its kind."""
    store = store_of(made.parent)
    site = building.build(store).parent
    published = building.publish(store, tmp_path_factory.mktemp('published') / 'report.html')
    return {'front': site / 'index.html', 'published': published, 'runs': site / 'runs.html',
            'run': site / 'runs' / 'retinanet-amd-s0.html',
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


KINDS = ['front', 'published', 'runs', 'run', 'notebook']


@pytest.mark.parametrize('kind', KINDS)
def test_axe_finds_nothing(look, kind):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='no axe here: pip install '
                              'axe-playwright-python').Axe()
    found = {}
    for device, scheme in (('laptop', 'light'), ('phone', 'dark')):
        # without preload, which would fetch the sheet
        for one in axe.run(look(kind, device, scheme), options={'preload': False}).response['violations']:
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
def test_every_stop_of_the_tab_key_is_seen(look, kind):
    page, stops = look(kind), 0
    for _ in range(60):
        page.keyboard.press('Tab')
        outline, seen = page.evaluate("""() => { const at = document.activeElement, box = at.getBoundingClientRect();
          return [at === document.body ? '' : getComputedStyle(at).outlineStyle,
                  box.bottom > 0 && box.top < innerHeight && box.right > 0]; }""")
        if not outline:
            break
        assert (outline != 'none', seen) == (True, True), page.evaluate('document.activeElement.outerHTML')
        stops += 1
    assert stops > 3
