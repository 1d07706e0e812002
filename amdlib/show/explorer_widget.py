"""The mask explorer in a notebook: the browser's own script, with a kernel that looks at the reader's own pictures."""
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from amdlib.errors import DataError
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import explorer, features
from amdlib.show.features import Picture


class MaskExplorer(anywidget.AnyWidget):
    """Pictures, models, level, phi and T to choose from above attention, mask, random mask and what they cover.

    All is drawn in the browser and follows a drag. `state` says what is set there: picture, name, model, run, beside,
    level, phi, temperature, seed; {} until something is touched.

    Args: as of `explorer.explorer_data`.
    Errors: as of `explorer.explorer_data`.
    """
    _esm = explorer.SCRIPT
    _css = explorer.STYLE
    data = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, runs: Sequence[Run], shown: Sequence[Picture], store: Store, rule: str = '',
                 phi: float | None = None, temperature: float | None = None, level: int = 0) -> None:
        super().__init__(data=explorer.explorer_data(runs, shown, store, rule, phi, temperature, level))
        self._store, self._runs = store, runs
        self._look = functools.cache(lambda run: explorer.Look(run, store))
        self.on_msg(self._answer)

    def _answer(self, _widget: MaskExplorer, asked: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """Look at a picture of the reader's own and send it back, or why it is none."""
        try:
            (picture,) = features.own_pictures(self._store, [(str(asked['name']), bytes(buffers[0]))],
                                               self._runs[0].row.group.name)
        except DataError as error:
            self.send({'error': str(error)})
            return
        self.send({'picture': explorer.picture_data(picture, [self._look(run)(picture) for run in self._runs])})

    def __repr__(self) -> str:      # what a page without widgets shows
        return 'the mask explorer: it needs JupyterLab (make lab), or a page of its own (python -m amdlib explore)'
