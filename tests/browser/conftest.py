"""A chromium that playwright drives; where there is none, these tests are skipped and say so."""
import shutil

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


@pytest.fixture(scope='session')
def chromium():
    api = pytest.importorskip('playwright.sync_api', reason='no playwright here: make setup')
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f'no browser here: none of {", ".join(NAMES)}')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])   # as root in a container
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """URL and options of the context -> a page of 1366x768; at the end it must have loaded nothing and thrown
    nothing."""
    contexts, wrong = [], []

    def open_page(url, **how):
        context = chromium.new_context(**{'viewport': {'width': 1366, 'height': 768}, **how})
        contexts.append(context)
        page = context.new_page()
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
        page.on('dialog', lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on('request', lambda asked: wrong.append(asked.url) if asked.url.startswith('http') else None)
        page.goto(url)
        return page
    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
