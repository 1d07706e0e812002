"""The whole site: what a results folder holds is gathered, then written page by page.

It shows what lies there and makes nothing anew: what is missing is named with the target that makes it, and a number
that its run's record does not bear out is marked. No page needs the network; the folder can be copied anywhere.
"""
from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amdlib.errors import RunError, SettingError
from amdlib.paper.pairs import GROUPS
from amdlib.paper.tables import TABLES
from amdlib.runs import fingerprints
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import explorer, tables
from amdlib.show.compare import compare_runs
from amdlib.show.report import claims, detections, drawings, markdown, notebooks, pages, single, summary, words
from amdlib.show.report.provenance import FIGURES, Provenance, behind, subjects, where
from amdlib.show.report.records import Entry, mark_used, problem, read_cells, read_entries
from amdlib.show.report.runs import Runs, changes, curves, in_order, means
from amdlib.words import log, plural

COLUMNS = {'table', 'group', 'row', 'label', 'metric', 'ours', 'sd', 'seeds', 'difference', 'paper',
           'paper_difference', 'runs', 'settings_hash', 'data', 'commit'}       # of a tidy table
FIGURE_COLUMNS = {'runs'}                                                       # of the numbers behind a figure


@dataclass(frozen=True)
class Contents:
    """What of a results folder the front page shows.

    Args:
        found: by table, variant or figure its cells (None: there are none) and why not.
        sources: by name what stands behind it. listed: runs in the order in which they are listed.
    """
    store: Store
    entries: dict[str, Entry]
    found: dict[str, tuple[pd.DataFrame | None, str]]
    sources: dict[str, Provenance]
    listed: list[Entry]

    @classmethod
    def of(cls, store: Store, known: Sequence[Run] = ()) -> Contents:
        """What there is, `known` of it runs of a study.

        Errors: RunError, saying what to run, where the folder holds neither table, figure, notebook nor record."""
        folder = store.folder
        if store.profile.dry_run:
            raise RunError(f'profile {store.profile.name}: a dry run has random weights and numbers that mean nothing; '
                           'see dryrun.md instead')
        entries, figures = read_entries(store, known), {figure.name for figure in FIGURES}
        shown = subjects(folder)
        found = {name: read_cells(folder / f'{name}.csv', FIGURE_COLUMNS if name in figures else COLUMNS)
                 for name in shown if name in figures or name.partition('_')[0] in TABLES}
        sources = {name: behind(one, store, entries) for name, one in shown.items()}
        if not entries and not notebooks.executed(folder) and not any(one.files for one in sources.values()):
            raise RunError(f'{folder}: no table, figure, record or executed notebook to report on; run '
                           f'`make reproduce-table1{where(store)}` first')
        listed = mark_used(entries, {name: source.runs for name, source in sources.items()} | (
            {'the study': [run.id for run in known]} if known else {}))
        for cells, _ in found.values():
            if cells is not None:
                cells['problem'] = [problem(cell, entries) for cell in cells.itertuples()]
        return cls(store, entries, found, sources, listed)

    def shown(self) -> dict[str, Any]:
        """What the template of the front page takes."""
        folder, judged = self.store.folder, claims.judged(self.store, self.entries)
        alts = {}
        for name, (cells, _) in self.found.items():
            table = TABLES.get(name.partition('_')[0])
            alts[name] = words.of_figure(name, cells, folder, self.sources[name].subject.caption) if not table else (
                words.of_table(table, cells) if cells is not None else '')
        drawn = [line for line in judged if line.low is not None]    # one seed has no interval
        variants = {name: [one for one in self.found if one.startswith(f'{name}_')] for name in TABLES}
        return {
            'tables': TABLES.values(), 'detectors': {name: group.student_label for name, group in GROUPS.items()},
            'figures': FIGURES, 'found': self.found, 'sources': self.sources, 'alts': alts,
            'runs': self.listed, 'entries': self.entries, 'group_title': tables.group_title,
            'reference_label': tables.reference_label, 'claims': judged, 'summary': claims.summary(judged),
            'drawn': drawn, 'drawn_alt': words.of_claims(drawn), 'scale': drawings.Scale.of(
                (line.difference, line.low, line.high, line.paper) for line in drawn),
            'variants': variants,
            'made': [name for name in self.found if self.sources[name].files or variants.get(name)],
            'explorer': explorer.for_report(self.store),
            'bed': markdown.page(folder / 'bed.md', 'The bed'),
            'calibration': markdown.page(folder / 'calibration.md', 'Factors'),
            'notes': {name: _notes(folder / f'{name}.md') for name in self.found}}


@dataclass(frozen=True)
class Front:
    """The first page of a site that is not about the paper: its template, the runs behind it, what fills it."""
    template: str
    runs: tuple[Run, ...]
    shown: dict[str, Any]


def build(store: Store, compare: Sequence[tuple[str, str]] = (), front: Front | None = None) -> Path:
    """Write the site whole into `report/` of the store's folder instead of an older one; return index.html.

    Args:
        compare: pairs of runs by id, each a page of its own beside those that every run is set beside anyway.
        front: the first page, where it is not the paper's.
    Errors: RunError, saying what to run, where there is nothing to report on; of `compare_runs`.
    """
    contents, folder = Contents.of(store, front.runs if front else ()), store.folder
    new, old = folder / f'.report.{os.getpid()}', folder / f'.report.old.{os.getpid()}'
    shutil.rmtree(new, ignore_errors=True)
    try:
        (new / 'figures').mkdir(parents=True)
        for source in contents.sources.values():
            for file in source.files:
                shutil.copyfile(file, new / 'figures' / file.name)
        shared = _shared(store)
        books = [notebooks.write(path, folder, new, shared) for path in notebooks.executed(folder)]
        pairs = _write_runs(contents, new, shared, compare)
        shown = {'runs': contents.listed, 'entries': contents.entries, **front.shown} if front else {
            'pictures': {name: f'figures/{source.shown}' for name, source in contents.sources.items() if source.shown},
            'notebooks': books, **contents.shown()}
        pages.write(new / 'index.html', front.template if front else 'report.html', shared, root='', pairs=pairs,
                    **shown)
        (new / 'report.css').write_text(pages.style())
        if (folder / 'report').exists():
            (folder / 'report').rename(old)
        new.rename(folder / 'report')
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    log.info(f'{plural(len(books), "notebook", "notebooks")}, {plural(len(contents.listed), "run", "runs")}: '
             f'{folder / "report" / "index.html"}')
    return folder / 'report' / 'index.html'


def publish(store: Store, file: Path | None = None) -> Path:
    """Write the front page as one HTML file that loads nothing, and beside it its one picture for who reads no further,
    summary.png, and the executed notebooks, a file each; return the page.

    Args:
        file: default: report.html in the store's folder.
    Errors: RunError as of `build`, and where the file would be larger than `single.MOST_BYTES`.
    """
    contents, file = Contents.of(store), file or store.folder / 'report.html'
    shared = {**_shared(store), 'single': True}
    shown = {**contents.shown(), 'notebooks': notebooks.publish(store.folder, file, shared), 'pairs': []}
    sources = {name: [path for kind in ('.svg', '.png') for path in source.files if path.suffix == kind]
               for name, source in contents.sources.items() if name in contents.found}
    if store.dataset.test_ann.is_file():    # of the data, where a folder was only copied here, nothing can be drawn
        summary.write(store, shown['claims'], file.with_name('summary'))
    return single.write(file, sources, lambda pictures: pages.render(
        'report.html', {**shared, 'style': pages.style(notebooks=False)}, root='',
        pictures=pictures, **shown))


def page_of_notebook(store: Store, path: Path) -> Path:
    """Write the page of one executed notebook alone into `report/`, as one file, and return it: the whole site takes
    minutes at its first time."""
    report = store.folder / 'report'
    front = next((name for name in ('index.html', '../report.html') if (report / name).is_file()), '')
    shared = {**_shared(store), 'single': True, 'style': pages.style()}
    return report / notebooks.write(path, store.folder, report, shared, front)['page']


def _shared(store: Store) -> dict[str, Any]:
    """What every page shows."""
    return {'profile': store.profile, 'dataset': store.dataset, 'where': where(store), 'kit': fingerprints.commit(),
            'built': datetime.datetime.now(datetime.UTC), 'single': False, 'style': ''}


def _write_runs(contents: Contents, new: Path, shared: dict[str, Any],
                compare: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Write the list of runs, a page a run and a page a pair that is asked for; return the pairs' pages."""
    store, entries = contents.store, contents.entries
    for run in [run for pair in compare for run in pair]:
        if run not in entries or not entries[run].run:
            raise SettingError(f'no run {run!r} with a record here; expected one of: '
                               f'{", ".join(entries) or "none"}')
    both = [compare_runs(*(entries[run].run for run in pair), store.with_kept()) for pair in compare]
    images = detections.images_shown(store, new / 'images')
    runs = Runs(store, entries, images, compare)
    pictures = {'images': images, 'seen': runs.seen, 'score': detections.SCORE, 'iou': detections.IOU,
                'kinds': detections.KINDS, 'told': detections.told, 'bar': drawings.bar}
    for done, entry in enumerate(entry for entry in contents.listed if entry.record):
        if done % 50 == 49:
            log.info(f'{done + 1} pages of runs')
        pages.write(new / entry.page, 'run.html', shared, root='../', **runs.page(entry), **pictures)
    pairs = []
    for number, (pair, beside) in enumerate(zip(compare, both, strict=True), 1):
        first, second = (entries[run] for run in pair)
        page = f'compare/{number}.html'
        pages.write(new / page, 'compare.html', shared, root='../', first=first, second=second,
                    beside=runs.beside(first, second), parts=beside.errors, notes=beside.notes,
                    changed=changes(second, first), gallery=runs.gallery(first, second),
                    curves=[(one, curves(one.folder)) for one in (first, second)], **pictures)
        pairs.append({'page': page, 'title': f'{pair[0]} beside {pair[1]}'})
    pages.write(new / 'runs.html', 'runs.html', shared, root='', rows=in_order(contents.listed), means=means,
                runs=contents.listed, pairs=pairs)
    return pairs


def _notes(file: Path) -> str:
    """What a table's or figure's markdown says of its limits, as HTML."""
    return markdown.html(file.read_text().partition(tables.LIMITS)[2]) if file.is_file() else ''
