"""Records that are kept in the repository, so that numbers shown there can be read where their runs do not lie.

Of every run that counts its record and what it logged, to five digits; of the first seed of Table I the detections too,
from which numbers and intervals follow. No weights: a run is repeated by its command.
"""
from __future__ import annotations

import gzip
import shutil

from amdlib.files import read_json, whole, write_json
from amdlib.runs.run import Run, table_runs
from amdlib.runs.store import DETECTIONS, KEPT, KEPT_DETECTIONS, KEPT_SCALARS, RECORD, Store, record_files
from amdlib.words import log, plural

MOST_MB = 25    # of all that is kept


def keep(store: Store) -> list[Run]:
    """Keep the records of all runs that are done; drop kept ones that no longer count. Returns the runs kept now."""
    kept = [run for file in store.record_files() if (run := store.run_of(file)) and store.state(run).name == 'done']
    with_detections = table_runs('table1', store.profile)
    for run in kept:
        _keep(run, store, run in with_detections)
    reading, dropped = store.with_kept(), []
    for file in record_files(store.folder / KEPT).values():
        run = store.run_of(file)
        if run is None or reading.state(run).name != 'done':
            shutil.rmtree(file.parent)
            dropped.append(file.parent.name)
    if dropped:
        log.info(f'no longer what would be run, dropped: {", ".join(dropped)}')
    size_mb = sum(file.stat().st_size for file in (store.folder / KEPT).rglob('*') if file.is_file()) / 1e6
    log.info(f'{plural(len(kept), "record", "records")} kept, {size_mb:.1f} MB in all in {store.folder / KEPT}'
             + (f'; that is more than {MOST_MB} MB' if size_mb > MOST_MB else ''))
    return kept


def _keep(run: Run, store: Store, detections: bool) -> None:
    own, folder, files = store.run_folder(run), store.kept_folder(run), {RECORD}
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / RECORD) as beside:
        shutil.copyfile(own / RECORD, beside)
    logged = store.scalars(run)
    if len(logged):
        files.add(KEPT_SCALARS)
        with whole(folder / KEPT_SCALARS) as beside:
            text = logged.to_csv(index=False, float_format='%.5g')     # pandas would write the file's name into it
            beside.write_bytes(gzip.compress(text.encode(), mtime=0))
    if detections:
        files.add(KEPT_DETECTIONS)
        write_json(folder / KEPT_DETECTIONS, read_json(own / DETECTIONS))
    for file in folder.iterdir():
        if file.name not in files:
            file.unlink()   # of an older record
