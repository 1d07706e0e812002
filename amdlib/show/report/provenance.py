"""Where a table or figure comes from: picture, numbers, records, commits, machines, and the command that makes it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amdlib.errors import RunError, SettingError
from amdlib.paper.planned import EXPLORATORY, PLANNED
from amdlib.paper.tables import TABLES
from amdlib.runs.planned import planned_runs
from amdlib.runs.store import Store
from amdlib.show import tables
from amdlib.show.report.records import Entry, lines_of, machines, read_cells, read_entries, runs_of
from amdlib.words import near, plural, some

PICTURE = ('.svg', '.png')      # the better one first


@dataclass(frozen=True)
class Subject:
    """What the report shows under a name, that of its files; `target` of make."""
    name: str
    title: str
    target: str
    caption: str = ''
    differs: str = ''   # of a table's variant: in what


FIGURES = (
    Subject('fig1', "Figure 1: the teacher's attention", 'reproduce-fig1', 'Images with ground truth, the attention of '
            'the teacher over them, and what the mask covers.'),
    Subject('fig3', 'Figure 3: feature maps', 'reproduce-fig3', 'The magnitude of the feature maps of teacher and '
            'students, method by method.'),
    Subject('fig4', 'Figure 4: the threshold phi', 'reproduce-fig4', 'mAP and mAR in percent over the threshold above '
            'which attention is masked (Eq. 4).'),
    Subject('mask_coverage', 'Mask coverage', 'reproduce-explore_masks', 'How much of a feature map is masked, and how '
            'much of that lies in boxes, over phi.'),
)
PLAN = Subject('significance', 'The planned comparisons', 'reproduce-significance')
BED = Subject('bed', 'Can this bed tell methods apart?', 'bed')
CALIBRATION = Subject('calibration', 'Calibrated weights', 'calibrate')


def subjects(folder: Path) -> dict[str, Subject]:
    """All that can be asked for, by name; variants of tables where they are there."""
    found = {}
    for table in TABLES.values():
        found[table.name] = Subject(table.name, table.heading, f'reproduce-{table.name}')
        found |= {name: Subject(name, f'{table.heading}, {words}', f'reproduce-{table.name}', differs=words)
                  for variant, words in tables.VARIANTS.items()
                  if (folder / f'{(name := f"{table.name}_{variant}")}.csv').is_file()}
    return found | {one.name: one for one in (*FIGURES, PLAN, BED, CALIBRATION)}


@dataclass(frozen=True)
class Provenance:
    """What stands behind a subject: its files, the runs that it names, and what their records say."""
    subject: Subject
    files: tuple[Path, ...]
    runs: tuple[str, ...]
    lost: tuple[str, ...]           # runs without a readable record
    commits: dict[str, int]         # how many records each made
    machines: dict[str, int]
    data: dict[str, int]

    @property
    def shown(self) -> str | None:
        """The name of the picture to show."""
        return next((file.name for kind in PICTURE for file in self.files if file.suffix == kind), None)

    def lines(self) -> list[tuple[str, str]]:
        """For a terminal: what, and which."""
        def counted(found: Mapping[str, int]) -> str:
            return '; '.join(f'{name} ({plural(count, "record", "records")})' for name, count in found.items())
        of_kind = {'picture': [file for file in self.files if file.suffix in PICTURE],
                   'numbers': [file for file in self.files if file.suffix == '.csv'],
                   'text': [file for file in self.files if file.suffix == '.md']}
        return [('what', self.subject.title),
                *((kind, ', '.join(map(near, files)) or 'none yet') for kind, files in of_kind.items()),
                ('records', f'{len(self.runs) - len(self.lost)}: {some(self.runs)}' if self.runs else 'none'),
                *([('no record', ', '.join(self.lost))] if self.lost else []),
                *((name, counted(found)) for name, found in (('commits', self.commits), ('machines', self.machines),
                                                              ('data', self.data)) if found)]


def behind(subject: Subject, store: Store, entries: Mapping[str, Entry]) -> Provenance:
    """What stands behind a subject in a store's folder; without files where it was not made yet."""
    folder, name = store.folder, subject.name
    files = [file for kind in (*PICTURE, '.csv', '.md') if (file := folder / f'{name}{kind}').is_file()]
    longer = [other for other in subjects(folder) if other.startswith(f'{name}_')]
    files += [file for file in sorted(folder.glob(f'{name}_*.csv')) if file.stem not in longer]
    runs = _runs(subject, store, entries) if files else []
    known = [entries[run] for run in runs if run in entries and entries[run].record]
    return Provenance(
        subject, tuple(files), tuple(runs), tuple(run for run in runs if run not in {entry.id for entry in known}),
        dict(Counter(_commit(entry) for entry in known)), machines(known),
        dict(Counter(f'{entry.record["data"]["name"]} {entry.record["data"]["fingerprint"]}' for entry in known)))


def _commit(entry: Entry) -> str:
    code = entry.record['code']
    return f'{code["commit"] or "not in git"}{"" if code["clean"] or not code["commit"] else " with changes"}'


def _runs(subject: Subject, store: Store, entries: Mapping[str, Entry]) -> list[str]:
    """The runs whose records a subject is made of."""
    file = store.folder / f'{subject.name}.csv'
    if subject == PLAN and file.is_file():
        named = {line['comparison'] for line in lines_of(file, {'comparison': str})}
        return list(dict.fromkeys(run.id for one in (*PLANNED, *EXPLORATORY) if one.name in named
                                  for run in planned_runs(one, store) if run.id in entries))
    if subject == BED:      # it shows rows, with the settings that were tried
        columns = dict.fromkeys(('group', 'row', 'settings'), str)
        rows = {tuple(line[name] for name in columns) for line in lines_of(file, columns, keep_default_na=False)}
        return [entry.id for entry in entries.values() if entry.run and (
            entry.run.row.group.name, entry.run.row.name,
            ' '.join(f'{key}={value}' for key, value in entry.run.settings.items())) in rows]
    cells, _ = read_cells(file, {'runs'})
    return [] if cells is None else runs_of(cells)


def why(name: str, store: Store) -> str:
    """The same as text for a terminal. Errors: SettingError listing the names; RunError where it was not made yet."""
    known = subjects(store.folder)
    if name not in known:
        raise SettingError(f'unknown table or figure {name!r}; expected one of: {", ".join(known)}')
    found = behind(known[name], store, read_entries(store))
    command = f'make {known[name].target}{where(store)}'
    if not found.files:
        raise RunError(f'{name}: not made yet; `{command}` makes it')
    lines = [*found.lines(), ('made by', command)]
    return '\n'.join(f'{what:10}{text}' for what, text in lines)


def where(store: Store) -> str:
    """What a make target needs besides its name."""
    return '' if store.profile.data == 'shapes' else f' PROFILE={store.profile.name} DATA=<folder>'
