"""The mask explorer in a browser: its numbers are amd.py's and coverage.py's, it follows a drag, and it fits."""
import io
import itertools
import json
import statistics

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from amdlib.methods.amd import keep_mask, spatial_attention
from amdlib.paper.profiles import PROFILES
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import coverage, explorer, features

pytestmark = pytest.mark.browser
EXPLORER = "document.querySelector('.amd-explorer').explorer"
TEMPERATURES, PHIS = (0.05, 0.5, 2.0), (0.3, 1.0, 1.07, 2.5)
EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028"\'&amp;'


@pytest.fixture(scope='module')
def store(dataset, tmp_path_factory):
    return Store(PROFILES['mini'], dataset, tmp_path_factory.mktemp('results'))


@pytest.fixture(scope='module')
def shown(store):
    """The test images and a picture that is padded and has boxes, one over its edge."""
    _, file = cv2.imencode('.png', np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8))
    (own,) = features.own_pictures(store, [('own.png', file.tobytes())])
    boxes = torch.tensor([[4.0, 8.0, 60.5, 40.0], [90.0, 30.0, 140.0, 90.0]])
    own = features.Picture(7, own.file_name, own.rgb, own.pixels, boxes, ('disc', 'ring'), own.normalised)
    return [*features.pictures(store), own]


@pytest.fixture(scope='module')
def runs():
    return [Run.of(row, 'mini') for row in ('retinanet-teacher', 'faster_rcnn-teacher')]


@pytest.fixture(scope='module')
def data(store, shown, runs):
    return explorer.explorer_data(runs, shown, store, 'These by hand')


@pytest.fixture(scope='module')
def maps(store, shown, runs):
    """What a loss sees of a run, picture and level: (1, C, H, W)."""
    return [[features.level_features(features.load_detector(run, store), [picture], run.row.group.levels,
                                      features.scales(run, store)) for picture in shown] for run in runs]


@pytest.fixture
def explore(visit, data, tmp_path):
    """Changes of the data and of the browser -> the explorer's page, with its pictures drawn."""
    def open_page(changed=data, where='', **how):
        file = tmp_path / 'explorer.html'
        file.write_text(explorer.page(changed), encoding='utf-8')
        page = visit(f'file://{file}{where}', **how)
        page.wait_for_function(f'{EXPLORER}.images.get({EXPLORER}.data.pictures[{EXPLORER}.now.picture].src)')
        return page
    return open_page


def state(page, **changes):
    return page.evaluate(f'changes => {{ {EXPLORER}.set(changes); return {EXPLORER}.state(); }}', changes)


# ---- numbers ----------------------------------------------------------------------------------------------------

def test_attention_and_masks_are_those_of_amd(explore, maps, shown, runs):
    """In float32, as in training; the mask wherever A is not phi itself up to what float32 can tell."""
    page, worst = explore(), 0
    for model, picture in itertools.product(range(len(runs)), range(len(shown))):
        levels = maps[model][picture]
        asked = list(itertools.product(range(len(levels)), TEMPERATURES, PHIS))
        found = page.evaluate(f"""asked => asked.map(([model, picture, level, temperature, phi]) => {{
            {EXPLORER}.set({{ model, picture, level, temperature, phi }}); return {EXPLORER}.state(); }})""",
                              [[model, picture, *one] for one in asked])
        for (level, temperature, phi), here in zip(asked, found, strict=True):
            wanted = spatial_attention(levels[level], temperature)
            masked, wanted = keep_mask(wanted, phi).flatten() == 0, wanted.flatten().double()
            error = (torch.tensor(here['attention'], dtype=torch.float64) - wanted).abs() / wanted.clamp(min=1)
            worst = max(worst, error.max().item())
            clear = (wanted - phi).abs() > 1e-6
            assert torch.equal(torch.tensor(here['masked'])[clear], masked[clear])
            assert clear.any() or len(clear) == 1
    print(f'the largest difference is {worst:.1e} of max(1, A)')
    assert worst <= 1e-6


def test_what_a_mask_covers_is_what_coverage_says(explore, maps, shown):
    page = explore()
    for picture, one in enumerate(shown):
        for level, f_t in enumerate(maps[0][picture]):
            for phi in PHIS:
                numbers = state(page, picture=picture, level=level, phi=phi)['numbers']
                line = coverage.mask_coverage([f_t], [one], [phi], 0.5).iloc[0]
                assert (numbers['total'], numbers['drawn']) == (line.positions, line.masked)
                assert numbers['masked'] == pytest.approx(line.masked_share)
                if numbers['inside'] is not None:
                    assert [numbers[name] for name in ('inside', 'chance', 'sd')] == pytest.approx(
                        [line.inside_share, line.random_share, line.random_sd])
                else:
                    assert line.masked == 0 or line.random_share in (0, 1)


def test_the_line_of_all_pictures_pools_them(explore, maps, shown):
    page = explore()
    state(page, phi=1.1, level=1)
    lines = [coverage.mask_coverage([f_t[1]], [one], [1.1], 0.5).iloc[0]
             for f_t, one in zip(maps[0], shown, strict=True)]
    masked = sum(line.masked for line in lines)
    share = sum(line.inside_share * line.masked for line in lines if line.masked) / masked
    chance = sum(line.random_share * line.masked for line in lines if line.masked) / masked
    spread = sum((line.random_sd * line.masked) ** 2 for line in lines if line.masked) ** 0.5 / masked
    told = [' '.join(text.split()) for text in page.locator('tbody tr').nth(1).locator('th, td').all_inner_texts()]
    assert told[0] == f'AMD, all {len(shown)}'
    assert told[1:4] == [f'{100 * masked / sum(line.positions for line in lines):.0f} %', f'{100 * share:.0f} %',
                         f'{100 * chance:.0f} ± {200 * spread:.0f} %']


def test_the_random_mask_has_mgds_ratio_and_is_drawn_again_by_a_button(explore):
    page = explore()
    for model, ratio in ((0, 0.65), (1, 0.45)):
        masks = [state(page, model=model, seed=seed)['random'] for seed in range(60)]
        drawn = np.array(masks)
        assert abs(drawn.mean() - ratio) < 4 * (ratio * (1 - ratio) / drawn.size) ** 0.5
        assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.04
        assert state(page, seed=3)['random'] == masks[3]
    before = state(page)['random']
    page.get_by_role('button', name='Draw again').click()
    assert state(page)['random'] != before


# ---- the hand ---------------------------------------------------------------------------------------------------

def test_the_picture_follows_a_drag(explore):
    """From the event of the slider to the frame after everything is drawn."""
    page = explore()
    page.evaluate("""() => {
      window.took = [];
      addEventListener('input', () => {
        const began = performance.now();
        requestAnimationFrame(() => { const { port1, port2 } = new MessageChannel();
          port1.onmessage = () => took.push(performance.now() - began); port2.postMessage(0); });
      }, true);
    }""")
    for name in ('φ, the threshold', 'T, the temperature'):
        box = page.get_by_role('slider', name=name).bounding_box()
        y = box['y'] + box['height'] / 2
        before = state(page)
        page.mouse.move(box['x'] + 0.3 * box['width'], y)
        page.mouse.down()
        page.mouse.move(box['x'] + 0.7 * box['width'], y, steps=30)
        during = state(page)
        assert (during['phi'], during['temperature']) != (before['phi'], before['temperature'])    # not released yet
        page.mouse.up()
    took = page.evaluate('took')
    print(f'{len(took)} moves: median {statistics.median(took):.1f} ms, most {max(took):.1f} ms')
    assert len(took) > 30
    assert statistics.median(took) < 50


def test_keys_move_everything_and_every_control_has_a_name(explore):
    page = explore()
    page.get_by_role('slider', name='φ, the threshold').focus()
    page.keyboard.press('ArrowRight')
    assert state(page)['phi'] == pytest.approx(1.01)
    page.get_by_role('slider', name='T, the temperature').focus()
    page.keyboard.press('ArrowLeft')
    assert state(page)['temperature'] == pytest.approx(0.49)
    page.get_by_role('radio', name='level 0: 16 x 16 positions, stride 8 px').focus()
    page.keyboard.press('ArrowRight')
    assert state(page)['level'] == 1
    page.locator('.pictures input').first.focus()
    page.keyboard.press('ArrowRight')
    assert state(page)['picture'] == 1
    for control in page.locator('.amd-explorer').locator('input, button, select, summary').all():
        assert control.evaluate("e => e.ariaLabel || e.textContent || e.labels?.[0]?.textContent")


@pytest.mark.parametrize('beside', [-1, 1])
def test_it_fits_a_laptop_without_scrolling(explore, beside):
    page = explore()
    state(page, beside=beside)
    assert page.evaluate('document.documentElement.scrollHeight') <= 768
    assert page.evaluate('document.documentElement.scrollWidth') <= 1366


@pytest.mark.parametrize('beside', [-1, 1])
def test_it_fits_jupyterlab_beside_its_list_of_files(explore, beside):
    """Which leaves 934 of a laptop's 1366 px, and 647 of its 768."""
    page = explore(viewport={'width': 973, 'height': 768})      # less the margins
    state(page, beside=beside)
    box = page.locator('.amd-explorer').bounding_box()
    assert box['width'] == pytest.approx(934, abs=1)
    assert box['height'] <= 647
    assert page.locator('.amd-explorer').evaluate('''root => [...root.querySelectorAll('table, button, select, canvas')]
        .filter((one) => one.getBoundingClientRect().right > root.getBoundingClientRect().right + 1).length''') == 0


def test_it_fits_a_phone_and_a_thumb(explore):
    page = explore(viewport={'width': 390, 'height': 844}, has_touch=True, is_mobile=True)
    state(page, beside=1)
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    wide = page.locator('.amd-explorer *:not(.pictures *)').evaluate_all(
        'all => all.filter((e) => e.getBoundingClientRect().right > 391).length')
    assert wide == 0
    for place in page.locator('.pictures label, .levels label, select, button, summary, .slider input').all():
        assert place.bounding_box()['height'] >= 43.9


def test_nothing_moves_while_it_is_dragged(explore):
    page = explore()
    tops = "() => [...document.querySelectorAll('canvas, svg, button')].map((e) => e.getBoundingClientRect().top)"
    before = page.evaluate(tops)
    for phi, temperature in ((0, 0.05), (3, 5), (1.5, 0.5)):
        state(page, phi=phi, temperature=temperature)
        assert page.evaluate(tops) == before


# ---- what is kept, and what is not ------------------------------------------------------------------------------

def test_a_view_is_saved_under_a_name_that_says_it_and_reset(explore):
    page = explore()
    first = state(page)
    state(page, phi=1.25, level=1, beside=1, seed=4)
    with page.expect_download() as waiting:
        page.get_by_role('button', name='Save picture').click()
    name = waiting.value.suggested_filename
    assert name == 'mask_retinanet-teacher-s0_test_00000_phi=1.25_T=0.5_level=1_seed=4.png'
    image = Image.open(io.BytesIO(waiting.value.path().read_bytes()))
    assert image.format == 'PNG'
    pixels = np.asarray(image.convert('RGB')).reshape(-1, 3).astype(int)
    assert len(np.unique(pixels, axis=0)) > 1000
    page.get_by_role('button', name='Reset').click()
    assert state(page) == first


def test_an_address_hands_a_view_on_and_nonsense_in_it_does_no_harm(explore):
    page = explore()
    sent = state(page, phi=1.31, picture=2, level=1, beside=1)
    where = page.evaluate('location.hash')
    assert state(explore(where=where)) == sent
    wrong = state(explore(where='#phi=<b>&picture=99&level=-3&temperature=1e99&model=NaN&beside=0&evil=1'))
    assert (wrong['phi'], wrong['picture'], wrong['level'], wrong['model'], wrong['beside']) == (1, 4, 0, 0, -1)


def test_names_of_files_and_classes_stay_text(explore, data):
    evil = json.loads(json.dumps(data))
    evil['rule'] = evil['profile'] = evil['models'][0]['label'] = evil['models'][0]['id'] = EVIL
    for picture in evil['pictures']:
        picture['name'] = EVIL
        picture['boxes'] = [[*box[:4], EVIL] for box in picture['boxes']]
    page = explore(evil)
    state(page, beside=1)
    assert page.locator('.amd-explorer img').count() == len(evil['pictures'])
    assert page.locator('script').count() == 1      # the island made room
    assert EVIL in page.locator('.tiles figcaption').first.text_content()
    with page.expect_download() as waiting:
        page.get_by_role('button', name='Save picture').click()
    assert not set('/<>"\' ') & set(waiting.value.suggested_filename)


def test_in_a_notebook_a_picture_goes_to_the_kernel_and_comes_back(visit, data, tmp_path):
    """anywidget's part is played: it imports the script and calls `render`."""
    blank, photo = tmp_path / 'blank.html', tmp_path / 'my photo.png'
    blank.write_text('<!DOCTYPE html><title>notebook</title><div id="cell"></div>')
    Image.new('RGB', (40, 30), 'red').save(photo)
    page = visit(f'file://{blank}')
    page.evaluate("""async ([code, data]) => {
      const url = URL.createObjectURL(new Blob([code], { type: 'text/javascript' }));
      window.sent = []; window.hear = null; window.told = {};
      window.end = (await import(url)).default.render({ el: document.getElementById('cell'), model: {
        get: () => data, set: (name, value) => { told[name] = value; }, save_changes: () => { told.saved = true; },
        on: (name, hear) => { window.hear = hear; }, off: () => { window.hear = null; },
        send: (content, _, buffers) => sent.push([content, [...new Uint8Array(buffers[0])]]) } });
    }""", [explorer.SCRIPT.read_text(), {**data, 'pictures': data['pictures'][:2]}])
    page.locator('input[type=file]').set_input_files(photo)
    page.wait_for_function('sent.length')
    content, sent = page.evaluate('sent[0]')
    assert content == {'name': 'my photo.png'}
    assert bytes(sent) == photo.read_bytes()
    page.evaluate('hear({ error: "<b>no picture</b>" })')
    assert page.locator('.message').inner_text() == '<b>no picture</b>'
    page.evaluate('picture => hear({ picture })', data['pictures'][-1])
    assert state(page)['name'] == 'own.png'
    assert not page.locator('.boxless').count()
    page.evaluate('picture => hear({ picture })', {**data['pictures'][-1], 'boxes': []})
    assert 'No boxes are known here' in page.locator('.told').inner_text()
    assert page.locator('.boxless').count() == 1     # the sheet leaves the key of boxes out
    assert page.evaluate('told.state.name') == 'own.png'
    assert page.evaluate('told.saved')
    page.evaluate('end()')
    assert page.locator('canvas').count() == 0
    assert page.evaluate('hear') is None
