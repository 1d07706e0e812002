"""README and docs/: links lead somewhere, commands exist, and what the code assumes stands there."""
import inspect
import re

import pandas as pd
import pytest
import torch

from amdlib import methods
from amdlib.cli import COMMANDS
from amdlib.files import ROOT
from amdlib.paper.pairs import GROUPS
from amdlib.paper.rows import cannot
from amdlib.runs.recipe import SETTINGS

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']
MAKEFILE = (ROOT / 'Makefile').read_text()
SOURCES = {path.relative_to(ROOT / 'amdlib'): path.read_text() for path in (ROOT / 'amdlib').rglob('*.py')}
every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def anchors(text):
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}


def commands(text):
    """Commands in code, inline and in blocks."""
    blocks = re.findall(r'```\w*\n(.*?)```', text, re.DOTALL)
    inline = re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))
    return [line.partition(' #')[0].strip() for block in blocks for line in block.splitlines()] + inline


@every_page
def test_every_link_leads_somewhere(page):
    for address in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if address.startswith(('http://', 'https://')):
            continue
        path, _, anchor = address.partition('#')
        there = page if not path else page.parent / path
        assert there.exists(), address
        assert not anchor or anchor in anchors(there.read_text()), address


def test_every_page_asks_a_question_that_the_readme_links():
    readme = PAGES[0].read_text()
    for page in (ROOT / 'docs').glob('*.md'):
        title = page.read_text().splitlines()[0]
        assert re.fullmatch(r'# .*\?', title), page
        assert f'| {title[2:]} | [docs/{page.name}](docs/{page.name}) |' in readme


@every_page
def test_every_command_exists(page):
    targets = {*re.findall(r'^([a-z0-9-]+):', MAKEFILE, re.MULTILINE),
               *re.findall(r'^#: ([a-z0-9-]+) ', MAKEFILE, re.MULTILINE)}
    variables = set(re.findall(r'^#\? ([A-Z_]+) ', MAKEFILE, re.MULTILINE))
    for line in commands(page.read_text()):
        if line.startswith('make '):
            _, target, *words = line.split()
            assert target in targets or '<' in target, line
            assert {word.partition('=')[0] for word in words if re.match(r'[A-Z_]+=', word)} <= variables, line
        elif line.startswith('python -m amdlib '):
            assert line.split()[3] in COMMANDS, line
        elif found := re.match(r'([A-Z_]{4,})=', line):
            assert found.group(1) in variables, line


@every_page
def test_every_file_of_the_kit_that_is_named_is_there(page):
    for name in re.findall(r'`((?:amdlib|notebooks|docs|tests|data)/[\w./-]*[\w/])`', page.read_text()):
        assert (ROOT / name).exists() or name in ('data/weights/', 'docs/assumptions.md'), name


@every_page
def test_every_setting_that_is_named_exists(page):
    for text in re.findall(r'SETTINGS="([^"]*)"', page.read_text()):
        for word in text.split():
            assert word.partition('=')[0] in {*SETTINGS, 'key', 'name'}, word


def test_a_page_has_every_setting():
    assert set(SETTINGS) <= set(re.findall(r'`(\w+)`', (ROOT / 'docs' / 'reproduce.md').read_text()))


def test_the_readme_is_read_in_five_minutes():
    text = PAGES[0].read_text()
    assert len(text.split()) <= 900
    assert text.count('\n') <= 130


# ---- assumptions and deviations ---------------------------------------------------------------------------------

def table():
    """The lines of docs/assumptions.md: id -> cells."""
    lines = [line for line in (ROOT / 'docs' / 'assumptions.md').read_text().splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines[2:]]
    assert all(len(one) == 4 for one in cells)
    return {one[0]: one for one in cells}


def test_what_the_code_marks_as_assumed_or_other_stands_in_the_table():
    marked = {found for text in SOURCES.values()
              for found in re.findall(r"(?:ASSUMPTION|DEVIATION) ([\w' -]+?)[:,]", text)}
    assert {'alpha', 'random masks', 'head-norm', 'no-masks', 'FKD-1'} <= marked
    assert marked <= set(table()), marked - set(table())
    # each mark is read, whatever stands behind it
    assert len(re.findall('# (?:ASSUMPTION|DEVIATION)', '\n'.join(SOURCES.values()))) <= sum(
        len(re.findall(r"(?:ASSUMPTION|DEVIATION) [\w' -]+?[:,]", text)) for text in SOURCES.values())


def test_every_place_that_the_table_names_exists():
    source = '\n'.join(SOURCES.values())
    for name, _, _, where in table().values():
        for told in re.findall(r'`([^`]+)`', where):
            assert (ROOT / 'amdlib' / told).is_file() or re.search(rf'\b{told}\b', source), f'{name}: {told}'


# ---- the zoo ----------------------------------------------------------------------------------------------------

LINES = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in (
    ROOT / 'docs' / 'zoo.md').read_text().splitlines() if line.startswith('| ')]
ZOO = {cells[1].strip('`'): cells for cells in LINES if len(cells) == 7 and cells[1].startswith('`')}


def needs(cls):
    """What a method asks for besides features: as it says, or as a level's loss fails without."""
    if methods.looks_at_steps(cls):
        return cls.NEEDS
    f = torch.ones(1, 4, 2, 2)
    try:
        cls(4, 4)(f, f)
    except ValueError:
        return {'boxes'}
    return set()


def weights(cls):
    """Its published weights with their exponents, and what is different for a pair."""
    defaults = {name: one.default for name, one in inspect.signature(cls).parameters.items()}
    told = [', '.join(f'`{name}` {defaults[name]:g} ({", ".join(f"{one:g}" for one in grows)})'
                      for name, grows in cls.WEIGHT_EXPONENTS.items())]
    for pair, published in cls.PUBLISHED.items():
        other = ', '.join(f'`{name}` {value:g}' for name, value in published.items()
                          if name in cls.WEIGHT_EXPONENTS and value != defaults[name])
        told += [f'{GROUPS[pair].student_label}: {other}'] if other else []
    return '; '.join(told)


@pytest.mark.parametrize('name', methods.names())
def test_the_page_of_the_zoo_tells_each_method_as_it_is(name):
    cls = methods.find_method(name)
    label, _, sees, detectors, formula, told, source = ZOO[name]
    assert label == cls.LABEL
    assert set(sees.split(', ')) - {'features'} == needs(cls)
    can = [group.student_label for group in GROUPS.values() if not cannot(group, name)]
    assert detectors == ('all' if len(can) == len(GROUPS) else ', '.join(can))
    assert formula
    assert told == weights(cls)
    assert re.search(r'\[(code|paper|own)\]', source)


def test_the_page_of_the_zoo_has_no_other_methods():
    assert set(ZOO) == set(methods.names())


def test_the_glossary_explains_each_word_once_and_every_state_of_a_run():
    text = (ROOT / 'docs' / 'glossary.md').read_text()
    lines = re.findall(r'^\| (?!word|---)([^|]+) \|', text, re.MULTILINE)
    words = [word for line in lines for word in line.split(', ')]
    assert len(set(words)) == len(words)
    assert {'done', 'stale', 'failed', 'running', 'missing'} <= set(words)


def test_the_changelog_tells_the_planned_results_as_they_are_committed():
    text = (ROOT / 'CHANGELOG.md').read_text()
    results = pd.read_csv(ROOT / 'results' / 'mini' / 'significance.csv').set_index('comparison')
    for name in ('AMD over MGD', 'AMD over same share at random'):
        line = results.loc[name]
        assert f'{line.difference:+.2f}' in text
        assert f'[{line.low:+.2f}, {line.high:+.2f}]' in text
