"""Question A from stored detections: how two checkpoints would compare on other test images, resampled once a pair.

What was found is kept in a hidden file of the store's folder, by the hashes of both files of detections: it holds for
these detections and no others, and may be deleted.
"""
from __future__ import annotations

import json
from collections.abc import Iterable

import pandas as pd

from amdlib.errors import SettingError
from amdlib.evaluation import METRICS
from amdlib.files import digest, sha256
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show.remembered import Remembered
from amdlib.show.stats import Matches, paired
from amdlib.words import log

KEPT = '.intervals.json'
RULE = 1    # counts up where `stats` would find other intervals


class OnImages:
    """Paired bootstraps over the test images of a store's runs; what was found is kept.

    Args:
        runs: that may be compared, all of them done.
        resamples: of the images.
    """

    def __init__(self, store: Store, runs: Iterable[Run], resamples: int = 1000) -> None:
        self.store, self.resamples = store, resamples
        self._kept = Remembered(store.folder / KEPT)
        self._runs = {run.id: run for run in runs}
        self._matches: dict[str, Matches] = {}

    def pair(self, run: str, other: str) -> pd.DataFrame:
        """By metric the difference of two runs (their ids) in percent, low and high of its 95 % interval."""
        return self.pairs([(run, other)])[run, other]

    def pairs(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], pd.DataFrame]:
        """The same for several pairs; progress is told, since a pair takes seconds.

        Errors: SettingError for two runs that were evaluated on different splits.
        """
        wanted = list(dict.fromkeys(wanted))
        keys = {pair: self._key(*pair) for pair in wanted}
        kept = self._kept.read()
        missing = [pair for pair in wanted if keys[pair] not in kept]
        for done, pair in enumerate(missing, 1):
            log.info(f'interval over test images, {done} of {len(missing)}: {pair[0]} minus {pair[1]}')
            table = paired(*map(self.matches, pair), resamples=self.resamples)
            kept[keys[pair]] = {line.metric: _plain([line.difference, line.low, line.high])
                                for line in table.itertuples()}
            self._kept.keep({keys[pair]: kept[keys[pair]]})
        return {pair: _table(kept[keys[pair]]) for pair in wanted}

    def known(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], pd.DataFrame]:
        """Of several pairs those that were resampled before."""
        kept = self._kept.read()
        return {pair: _table(kept[key]) for pair in wanted if (key := self._key(*pair)) in kept}

    def matches(self, run: str) -> Matches:
        """What a run found, matched with the objects of its test images."""
        if run not in self._matches:
            own = self._runs[run]
            self._matches[run] = Matches.of(self.store.reported(own), self.store.detections(own))
        return self._matches[run]

    def _key(self, run: str, other: str) -> str:
        runs = [self._runs[name] for name in (run, other)]
        splits = {one.recipe.split for one in runs}
        if len(splits) > 1:
            raise SettingError(f'{run} and {other} were evaluated on different splits')
        found = [sha256(self.store.detections_file(one)) for one in runs]
        return digest(json.dumps([RULE, self.resamples, self.store.dataset.fingerprint, *splits, *found]))


def _table(found: dict[str, list]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(found, orient='index', columns=['difference', 'low', 'high'], dtype=float).reindex(
        list(METRICS))


def _plain(values: list[float]) -> list[float | None]:
    return [None if value != value else float(value) for value in values]
