"""Commands of the test bed: is it valid, factors, teachers, the backbone."""
from __future__ import annotations

from amdlib.cli import arguments as read
from amdlib.cli.arguments import FORCE, GROUP, JOBS, MEANS, SETTINGS, WHERE, Words, arg
from amdlib.cli.parsing import command
from amdlib.terminal import SCREEN


@command(*WHERE, GROUP, *SETTINGS, arg('--write', action='store_true', help='write bed.md and bed.csv too'),
         arg('--no-masks', action='store_true', help="do not look at the teacher's masks, which takes a minute"))
def bed(given: Words) -> None:
    """Say from the records whether the test bed can tell methods apart: the teacher's lead, the spread over seeds,
    clipped steps, distillation beside detection, masks."""
    from amdlib.show.bed import Bed, write
    groups, settings, store = read.groups(given), read.settings(given), read.store(given).with_kept()
    beds = [Bed(store, group, settings, not given.no_masks) for group in groups]
    SCREEN.say('\n\n'.join(bed.markdown() for bed in beds))
    if given.write:
        SCREEN.say(f'\n{write(beds)}')


@command(*WHERE, GROUP, read.ARM, *read.OF_CALIBRATION, *SETTINGS, *MEANS, JOBS, FORCE)
def calibrate(given: Words) -> None:
    """Choose one factor on all weights of each method, on validation pictures: train what is missing, write
    calibration.md and calibration.csv."""
    from amdlib.paper.profiles import find_profile
    from amdlib.runs import calibrate
    names = ' '.join(given.methods).replace(',', ' ').split()
    asked = read.groups(given), given.arm, names, read.seeds(given)
    calibrate.check(find_profile(given.profile), *asked)
    store = read.store(given)
    calibrate.calibrate(store, *asked, read.settings(given), force=given.force)
    SCREEN.say(f'\n{calibrate.as_markdown(calibrate.read(store))}')


@command(*WHERE, arg('--group', default='retinanet', help='retinanet (default), reppoints or faster_rcnn'), *SETTINGS,
         *MEANS, JOBS, arg('--exploratory', action='store_true', help="train the plan's exploratory comparisons too"))
def plan(given: Words) -> None:
    """Train what docs/plan.md asks for, in the order of its value, factors first where they were not chosen, and judge
    the planned comparisons."""
    from amdlib.runs.planned import train_plan
    from amdlib.show.significance import Plan, as_text
    from amdlib.show.tables import as_markdown
    settings, store = read.settings(given), read.store(given)
    train_plan(store, given.group, settings, given.exploratory)
    SCREEN.say(f'\n{as_markdown(as_text(Plan(store, given.group, settings).results()))}')


@command(*WHERE, GROUP, read.OF_TEACHERS, *MEANS, JOBS, FORCE)
def teachers(given: Words) -> None:
    """Train the teachers that a profile ships, round them to half precision, evaluate them, and put them with their
    records below data/teachers/ instead of older ones."""
    from amdlib.runs import teachers
    groups, seeds = read.groups(given) if given.group else [], read.seeds(given)
    for file in teachers.make(read.store(given), groups, seeds, force=given.force):
        SCREEN.say(file)


@command(*WHERE)
def keep(given: Words) -> None:
    """Put the records of all runs that count into results/<profile>/records/, to be committed: what they logged too, of
    Table I's first seed the detections, no weights."""
    from amdlib.runs.keeping import keep
    keep(read.store(given))


@command(*WHERE)
def pretrain(given: Words) -> None:
    """Pre-train the small backbone that students start from, on single shapes, and put it with its record below
    data/teachers/ instead of an older one."""
    from amdlib.runs import pretrain
    SCREEN.say(pretrain.make(read.store(given)))
