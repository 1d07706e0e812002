"""The method as a drawing: what AMD does with the features of a teacher and a student, equation by equation."""
from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from amdlib.show.charts import COLOURS, STYLE

TEACHER, STUDENT, TRAINED = '#DCE9F5', '#F3F3F3', '#FBF3D0'     # what belongs to whom; what trains beside the student
WIDTH, HEIGHT = 1.5, 0.62
# name -> centre, text, colour
BOXES = {
    'image': ((0.0, 1.5), 'picture', 'white'),
    'teacher': ((2.0, 3.0), 'teacher, frozen', TEACHER), 'student': ((2.0, 0.0), 'student', STUDENT),
    'f_t': ((4.0, 3.0), '$F_T$', TEACHER), 'f_s': ((4.0, 0.0), '$F_S$', STUDENT),
    'attention': ((6.0, 2.2), 'attention $A$\nEq. 2, 3', TEACHER),
    'mask': ((8.0, 1.2), 'mask $M$: 0\nwhere $A > \\phi$, Eq. 4', COLOURS['masked']),
    'align': ((6.0, 0.0), 'align', TRAINED), 'masked': ((8.0, 0.0), '$F_{mask}$, Eq. 5', STUDENT),
    'generation': ((10.0, 0.0), 'generation\n(two 3x3 conv.)', TRAINED),
    'clue': ((10.0, 1.9), 'channel clue\n(SE layer)', TRAINED), 'f_gen': ((12.0, 0.0), '$F_{gen}$, Eq. 6', STUDENT),
    'dis': ((12.0, 3.0), '$L_{dis} = \\sum (F_T - F_{gen})^2$\nEq. 7', 'white'),
    'det': ((4.0, -1.3), 'its head: $L_{det}$', STUDENT),
    'loss': ((12.0, -1.3), '$L = L_{det} + \\alpha L_{dis}$\nEq. 8', 'white')}
# from, to, and the side (x, y of -1 ... 1) where the arrow leaves and where it ends
ARROWS = (
    ('image', 'teacher', (1, 1), (-1, 0)), ('image', 'student', (1, -1), (-1, 0)),
    ('teacher', 'f_t', (1, 0), (-1, 0)), ('student', 'f_s', (1, 0), (-1, 0)),
    ('f_t', 'attention', (1, -1), (-1, 0)), ('attention', 'mask', (1, 0), (-0.6, 1)),
    ('f_s', 'align', (1, 0), (-1, 0)), ('align', 'masked', (1, 0), (-1, 0)), ('mask', 'masked', (0, -1), (0, 1)),
    ('masked', 'generation', (1, 0), (-1, 0)), ('generation', 'f_gen', (1, 0), (-1, 0)),
    ('f_t', 'clue', (1, 0), (-0.4, 1)), ('clue', 'f_gen', (1, 0), (-0.4, 1)),
    ('f_t', 'dis', (1, 0.5), (-1, 0.5)), ('f_gen', 'dis', (0, 1), (0, -1)),
    ('f_s', 'det', (0, -1), (0, 1)), ('det', 'loss', (1, 0), (-1, 0)), ('dis', 'loss', (1, 0), (1, 0)))


def amd() -> Figure:
    """AMD on one level of the pyramid: what is the teacher's, what the student's, and what is thrown away (docs/amd.svg
    is made of it)."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9.6, 4), layout='constrained')
        for source, target, leaves, ends in ARROWS:
            bend = 'arc3,rad=-0.35' if (source, target) == ('dis', 'loss') else 'arc3'
            axis.annotate('', _edge(target, ends), _edge(source, leaves), arrowprops={
                'arrowstyle': '-|>', 'color': '0.25', 'shrinkA': 0, 'shrinkB': 0, 'connectionstyle': bend})
        for name in BOXES:
            _box(axis, name)
        for x, (text, colour) in enumerate((("the teacher's", TEACHER), ("the student's", STUDENT),
                                            ('trains beside it, thrown away after training', TRAINED))):
            axis.text(0.2 + 2.7 * x, -2.3, text, fontsize=8, bbox={'facecolor': colour, 'edgecolor': '0.4', 'pad': 3})
        axis.set(xlim=(-0.9, 14.3), ylim=(-2.6, 3.6))
        axis.set_axis_off()
    return figure


def _edge(name: str, side: tuple[float, float]) -> tuple[float, float]:
    """A point on a box's edge."""
    (x, y), text, _ = BOXES[name]
    return x + side[0] * _width(text) / 2, y + side[1] * HEIGHT / 2


def _width(text: str) -> float:
    return 2.3 if 'sum' in text else 1.85 if 'alpha' in text or 'where' in text else WIDTH


def _box(axis: Axes, name: str) -> None:
    (x, y), text, colour = BOXES[name]
    axis.add_patch(FancyBboxPatch((x - _width(text) / 2, y - HEIGHT / 2), _width(text), HEIGHT, facecolor=colour,
                                  edgecolor='0.4', boxstyle='round,pad=0,rounding_size=0.1'))
    axis.text(x, y, text, ha='center', va='center', fontsize=8, color='white' if name == 'mask' else 'black')
