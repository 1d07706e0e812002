"""The command line: `python -m amdlib COMMAND --help`."""
from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {'torch': 'torch', 'torchvision': 'torchvision', 'mmcv': 'mmcv-lite', 'mmengine': 'mmengine', 'mmdet': 'mmdet',
          'pycocotools': 'pycocotools', 'cv2': 'opencv-python-headless', 'pandas': 'pandas', 'matplotlib': 'matplotlib',
          'papermill': 'papermill', 'jupyterlab': 'jupyterlab', 'ipykernel': 'ipykernel', 'tabulate': 'tabulate',
          'ipywidgets': 'ipywidgets', 'nbconvert': 'nbconvert', 'latex2mathml': 'latex2mathml',
          'pkg_resources': 'setuptools'}  # mmengine reads mmdet:: configs through it; setuptools >= 81 has it no more


def main(words: list[str] | None = None) -> int:
    """Exit status: 0, 1 for an error that is told in a line, 2 for wrong usage."""
    arguments = _parser().parse_args(words)
    if hasattr(sys.stdout, 'reconfigure'):    # not in tests and notebooks
        sys.stdout.reconfigure(line_buffering=True)     # what is said reaches a log at once
    if arguments.command == 'doctor':
        return doctor()
    if os.environ.pop('AMD_ENDS_WITH_STDIN', ''):   # one of a batch
        from amdlib.distributed import end_with
        end_with(sys.stdin.fileno())
    if getattr(arguments, 'device', None):
        _choose_device(arguments.device)
    from amdlib import KitError, zoo
    try:
        _choose_teachers(arguments)
        os.environ.update(zoo.environment())    # notebooks and batches work in other folders
        return arguments.do(arguments) or 0
    except (KitError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m amdlib', description='The AMD kit (arXiv 2301.13538).')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name: str, do, text: str, *shared) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=list(shared))
        command.set_defaults(do=do)
        return command

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument('--profile', default='mini', help='mini (default), small or paper')
    where.add_argument('--data', metavar='DIR', help='data set folder, for the profiles small and paper (and dryrun)')
    where.add_argument('--results', type=Path, default=ROOT / 'results', metavar='DIR', help='default: results/')
    changes = argparse.ArgumentParser(add_help=False)
    changes.add_argument('--seed', type=int, default=0)
    changes.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                         help='epochs, batch_size, lr (taken as it is, not scaled), accumulate (steps an update), '
                              'gpus, a switch for speed (amp and half_teacher: bf16 or fp16; tf32, channels_last, '
                              'fused, compile_teacher: True), a weight file (backbone, teacher_backbone, '
                              "teacher_checkpoint), or an argument of the method's loss such as phi; repeatable, part "
                              "of the run's name")

    published = argparse.ArgumentParser(add_help=False)
    published.add_argument('--weights', metavar='DIR',
                           help='folder with published weights, for the profile paper (or AMD_WEIGHTS)')
    teachers = argparse.ArgumentParser(add_help=False, parents=[published])
    teachers.add_argument('--teacher-check-images', type=int, metavar='N',
                          help="images on which a published teacher's mAP is checked before training; default 300")
    teachers.add_argument('--skip-teacher-check', action='store_true', help='train whatever the teacher is like')

    add('list', _list, 'list every row with the paper\'s value')
    add('values', _values, "print every value of the paper's experiments with its source")
    fetch = add('weights', _weights, 'find or fetch the published weights of the profile paper and print where they '
                                     'are, such as where there is a network before runs start where there is none',
                published)
    fetch.add_argument('rows', nargs='*', help='default: all rows')
    show = add('show', _show, "print a run's whole mmengine config as Python text", where, changes)
    show.add_argument('row')
    run = add('run', _run, 'train and evaluate one row (and its teacher, where that is missing)', where, changes,
              teachers)
    run.add_argument('row')
    run.add_argument('--device', help='cpu, cuda or cuda:N; default: a GPU where there is one')
    run.add_argument('--force', action='store_true', help='train again although the run is done')
    run.add_argument('--work-dir', metavar='DIR', help='put the run here, outside the tables')
    run.add_argument('--resume', action='store_true', help='an error unless the run goes on from a checkpoint (it does '
                                                           'so anyway where an interrupted run can go on)')
    run.add_argument('--gpus', type=int, metavar='N', help='train on N GPUs together; the same as --set gpus=N')
    run.add_argument('--amp', action='store_true', help="mixed precision as mmdet's --amp; the same as --set amp=fp16")
    run.add_argument('--workers', type=int, metavar='N', help='processes that load pictures, a GPU; changes no number')
    run.add_argument('--tensorboard', action='store_true',
                     help="write what is logged into tensorboard/ of the run's folder; the same as AMD_TENSORBOARD=1")
    run.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                     help="change mmengine's config by dotted keys; needs --work-dir")
    add('data', _data, 'prepare and check a data set', where)
    table = add('table', _table, 'print a table from the records that are there', where)
    table.add_argument('name', nargs='?', default='table1', help='table1 (default) to table6')
    table.add_argument('--group', help='only this group')
    table.add_argument('--seeds', default='0', help='comma-separated; default 0')
    table.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                       help='a setting that its runs were made with, such as epochs=2')
    export = add('export', _export, 'write the detector of a finished run as files for stock mmdet', where)
    export.add_argument('run', help="name of the run's folder, such as retinanet-amd-s0, or the folder")
    export.add_argument('--output', metavar='DIR', help="default: export/ in the run's folder")
    export.add_argument('--onnx', action='store_true', help='also as ONNX, compared with torch (RetinaNet)')
    export.add_argument('--stale-ok', action='store_true', help='although the run would be made again now')
    export.add_argument('--set', action='append', default=[], metavar='KEY=FILE', dest='files',
                        help='a weight file that the run was made with; repeatable')
    parameters = argparse.ArgumentParser(add_help=False)
    parameters.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                            help='a parameter of the notebook; an unknown one is an error')
    notebook = add('notebook', _notebook, 'execute a notebook by papermill; its output appears here', where, parameters,
                   teachers)
    notebook.add_argument('name', help='file name in notebooks/, without .ipynb')
    notebook.add_argument('--output', metavar='NAME', help='of the executed copy, below results/; default: the same')
    notebook.add_argument('--device', help='what a run in the notebook uses: cpu, cuda or cuda:N')
    reproduce = add('reproduce', _reproduce, 'train what targets lack and execute their notebooks', where, parameters,
                    teachers)
    reproduce.add_argument('targets', nargs='+', help='table1 ... table6, fig1, fig3, fig4, or all')
    sweep = add('sweep', _sweep, 'run a row with several values of one option, an executed notebook each', where,
                teachers)
    sweep.add_argument('row')
    sweep.add_argument('option', help="an argument of the method's loss, such as phi, temperature or mask_ratio")
    sweep.add_argument('values', nargs='+')
    sweep.add_argument('--seeds', default='0', help='comma-separated; default 0')
    sweep.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                       help='another setting of every run, such as epochs=2')
    sweep.add_argument('--jobs', type=int, help='runs at once; default: one a GPU, or one a core (four at most)')
    sweep.add_argument('--device', help='cpu, cuda or cuda:N; default: a GPU where there is one')
    dryrun = add('dryrun', _dryrun, "run every row a few steps at the paper's full architectures with random weights; "
                                    'evaluate, export and read it again')
    dryrun.add_argument('rows', nargs='*', help='default: all rows; teachers come along')
    dryrun.add_argument('--data', required=True, metavar='DIR', help='COCO 2017, or a few images of it')
    dryrun.add_argument('--results', type=Path, default=ROOT / 'results', metavar='DIR', help='default: results/')
    dryrun.add_argument('--jobs', type=int, help='rows at once; default: one a GPU, or one a core (four at most)')
    dryrun.add_argument('--device', help='cpu, cuda or cuda:N; default: a GPU where there is one')
    dryrun.add_argument('--keep', action='store_true', help='leave weights and exported files, some 300 MB a row')
    cost = add('cost', _cost, 'print steps, measured seconds a step, memory and GPU-hours of each row', where)
    cost.add_argument('rows', nargs='*', help='default: all rows')
    cost.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                      help='recipe of the runs, such as gpus=8 or amp=bf16; repeatable')
    cost.add_argument('--measure', action='store_true',
                      help='first time a few steps of each row on made images of full size, on a GPU')
    cost.add_argument('--switches', action='store_true',
                      help='compare the switches for speed, each alone and all together; with --measure, time them')
    cost.add_argument('--steps', type=int, default=20, help='that are timed; default 20')
    cost.add_argument('--device', help='of the measurement; default: a GPU, without which it is an error')
    status = add('status', _status, 'say which runs are done, running, failed, stale or missing, and why', where,
                 parameters)
    status.add_argument('targets', nargs='*', help='as for reproduce; default: all')
    add('report', _report, 'gather tables, figures and notebooks in a static HTML site', where)
    commands.add_parser('doctor', help='print versions, GPU, operators in use, what is missing and how to mend it')
    return parser


def _choose_device(device: str) -> None:
    """mmengine takes the first GPU that it sees; so what it sees is what is chosen."""
    kind, _, number = device.partition(':')
    if kind not in ('cpu', 'cuda') or (number and not number.isdigit()) or (kind == 'cpu' and number):
        raise SystemExit(f'error: --device {device}: expected cpu, cuda or cuda:N')
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        return
    import torch
    if number:  # the N-th of those that are visible, which need not be all
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        cards = dict(enumerate(visible.split(','))) if visible is not None else {int(number): number}
        os.environ['CUDA_VISIBLE_DEVICES'] = cards.get(int(number), '')
    if not torch.cuda.is_available():
        raise SystemExit(f'error: --device {device}: torch sees no such GPU (python -m amdlib doctor tells more)')


def _choose_teachers(arguments) -> None:
    """Into the environment, through which it reaches notebooks and the processes of a batch."""
    if getattr(arguments, 'weights', None):
        os.environ['AMD_WEIGHTS'] = arguments.weights
    if getattr(arguments, 'teacher_check_images', None) is not None:
        os.environ['AMD_TEACHER_CHECK'] = str(arguments.teacher_check_images)
    if getattr(arguments, 'skip_teacher_check', False):
        os.environ['AMD_TEACHER_CHECK'] = '0'


def _prepare(arguments, say=print):
    from amdlib import data
    from amdlib.experiments import find_profile
    profile = find_profile(arguments.profile)
    return data.prepare(arguments.profile, Path(arguments.data) if arguments.data else None, ROOT / 'data', log=say,
                        first_images=profile.first_images)


def _prepare_or_none(arguments):
    """The data set; None where none is given and the profile's Config can do without."""
    from amdlib.experiments import find_profile
    if find_profile(arguments.profile).published and not arguments.data:
        return None
    return _prepare(arguments, _to_stderr)


def _to_stderr(*words) -> None:
    print(*words, file=sys.stderr)


def _list(_arguments) -> None:
    from amdlib.experiments import PROFILES, ROWS, TABLES, Run, assumptions
    from amdlib.tables import paper_value
    profiles = ' '.join(f'{name:>6}' for name in PROFILES)
    print(f'{"row":26} {"paper mAP":>9}  {"detector":18} {"method":7} {profiles} epochs  tables')
    for row in ROWS.values():
        tables = [table for table in TABLES.values() if row in table.rows()]
        values = [paper_value(table.number, row.group.name, table.label(row), 'mAP') for table in tables]
        value = next((f'{value:.1f}' for value in values if value is not None), '-')
        # the paper's teachers are published checkpoints
        epochs = ' '.join(f'{"-" if name == "paper" and row.is_teacher else Run(row, profile).epochs:>6}'
                          for name, profile in PROFILES.items())
        detector = row.group.teacher_label if row.is_teacher else row.group.student_label
        print(f'{row.id:26} {value:>9}  {detector:18} {row.method or "-":7} {epochs}         '
              f'{" ".join(table.number for table in tables)}')
    print(f'\n{assumptions()}')


def _values(_arguments) -> None:
    from amdlib.values import as_text, paper_values
    print(as_text(paper_values()))


def _weights(arguments) -> int:
    from amdlib import zoo
    from amdlib.experiments import ROWS, Run
    runs = [Run.of(row, 'paper') for row in arguments.rows or ROWS]
    missing = 0
    for url in dict.fromkeys(url for run in runs for one in (run.teacher(), run) if one
                             for url in one.published_files().values()):
        try:
            print(zoo.find(url))
        except zoo.ZooError as error:   # the others are looked for all the same
            print(f'error: {error}', file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def _show(arguments) -> None:
    from amdlib.experiments import Run, config, read_settings
    run = Run.of(arguments.row, arguments.profile, arguments.seed, read_settings(arguments.settings))
    dataset = _prepare_or_none(arguments)
    print(config(run, dataset).pretty_text)


def _run(arguments) -> None:
    from amdlib.experiments import Run, read_settings
    from amdlib.train import run_row
    settings = read_settings(arguments.settings)
    if arguments.amp:
        settings['amp'] = 'fp16'
    if arguments.gpus is not None:
        settings['gpus'] = arguments.gpus
    run = Run.of(arguments.row, arguments.profile, arguments.seed, settings)
    options = None
    if arguments.cfg_options:
        options = {key: _option(value) for key, value in read_settings(arguments.cfg_options).items()}
    run_row(run, _prepare(arguments), arguments.results, force=arguments.force, resume=arguments.resume,
            work_dir=arguments.work_dir, cfg_options=options, workers=_workers(arguments.workers),
            tensorboard=arguments.tensorboard)


def _workers(given: int | None) -> int | None:
    """As given, or AMD_WORKERS, which reaches the processes of a batch."""
    text = os.environ.get('AMD_WORKERS', '')
    if given is None and text:
        from amdlib.experiments import SettingError
        if not text.isdigit():
            raise SettingError(f'AMD_WORKERS={text}: expected a number of processes')
        return int(text)
    return given


def _option(text: str):
    """A value of --cfg-options as mmdet's tools read it, and also with dicts, such as those of vis_backends."""
    if '{' not in text:
        from mmengine.config import DictAction
        return DictAction._parse_iterable(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        from amdlib.experiments import SettingError
        raise SettingError(f"--cfg-options: {text!r} is no Python literal, such as [{{'type': 'Name'}}]") from None


def _data(arguments) -> None:
    dataset = _prepare(arguments)
    print(f'{dataset.name}: {len(dataset.classes)} classes, fingerprint {dataset.fingerprint}')
    for note in dataset.notes:
        print(f'  note: {note}')


def _table(arguments) -> None:
    from amdlib import results, tables
    from amdlib.experiments import read_settings, table_runs
    runs = table_runs(arguments.name, arguments.profile, arguments.group, arguments.seeds,
                      read_settings(arguments.settings))
    cells = tables.tidy(arguments.name, results.collect(runs, _prepare(arguments, _to_stderr), arguments.results))
    for group in cells.group.unique():
        print(f'\n{group}\n{tables.wide(cells, group).to_markdown(index=False, disable_numparse=True)}')


def _given(arguments) -> dict[str, str]:
    """What --set gives, files and folders as absolute paths: a notebook runs in a folder of its own."""
    from amdlib.experiments import FILE_SETTINGS, read_settings, write_settings
    given = read_settings(arguments.settings)
    if given.get('settings'):
        files = {name for names in FILE_SETTINGS.values() for name in names}
        given['settings'] = write_settings({
            key: Path(value).resolve() if key in files else value
            for key, value in read_settings(given['settings']).items()})
    if arguments.data:
        arguments.data = str(Path(arguments.data).resolve())
    arguments.results = arguments.results.resolve()
    return given


def _export(arguments) -> None:
    from amdlib import export
    from amdlib.experiments import read_settings
    arguments.profile = export.profile_of(arguments.run) or arguments.profile
    export.export(arguments.run, arguments.profile, _prepare(arguments, _to_stderr), arguments.results,
                  output=arguments.output, onnx=arguments.onnx, files=read_settings(arguments.files),
                  stale_ok=arguments.stale_ok)


def _notebook(arguments) -> None:
    from amdlib import notebooks, results
    given = _given(arguments)
    place = results.folder(arguments.profile, _prepare(arguments, lambda *_: None), arguments.results)
    output = place / (arguments.output or arguments.name)
    output = output if output.suffix == '.ipynb' else output.with_name(f'{output.name}.ipynb')
    notebooks.execute(ROOT / 'notebooks' / f'{arguments.name}.ipynb', output,
                      {'profile': arguments.profile, 'data': arguments.data, 'results_dir': str(arguments.results),
                       **given})


def _reproduce(arguments) -> None:
    from amdlib import targets
    given = _given(arguments)
    wanted = targets.find_targets(arguments.targets, given.get('group'))
    targets.reproduce(wanted, arguments.profile, _prepare(arguments, lambda *_: None),
                      Path(arguments.data) if arguments.data else None, arguments.results, given)


def _sweep(arguments) -> None:
    from amdlib import batch, experiments, results, tables
    dataset = _prepare(arguments)
    runs = experiments.sweep_runs(arguments.row, arguments.option, ' '.join(arguments.values), arguments.profile,
                                  arguments.seeds, experiments.read_settings(arguments.settings))
    arguments.results = arguments.results.resolve()
    place = results.folder(arguments.profile, dataset, arguments.results) / f'sweep_{arguments.option}'
    batch.run_missing([], dataset, arguments.data and Path(arguments.data).resolve(), jobs=arguments.jobs,
                      device=arguments.device, results_dir=arguments.results,
                      executed={run: place / f'{run.id}.ipynb' for run in runs})
    cells = tables.sweep(runs, results.collect(runs, dataset, arguments.results), arguments.option)
    print(f'\n{tables.sweep_wide(cells).to_markdown(index=False, disable_numparse=True)}\n')
    print(f'executed notebooks: {place}')


def _dryrun(arguments) -> None:
    from amdlib import dryrun
    from amdlib.experiments import DRY_RUN, find_row
    arguments.profile, arguments.data = DRY_RUN.name, Path(arguments.data).resolve()
    for row in arguments.rows:
        find_row(row)
    dryrun.dry_run(_prepare(arguments), arguments.data, arguments.results.resolve(), rows=arguments.rows,
                   jobs=arguments.jobs, device=arguments.device, keep=arguments.keep)


def _cost(arguments) -> None:
    from amdlib import cost
    from amdlib.experiments import ROWS, find_profile, find_row, read_settings
    profile, settings = find_profile(arguments.profile), read_settings(arguments.settings)
    rows = [find_row(row) for row in arguments.rows or ROWS]
    dataset = _prepare_or_none(arguments)
    if arguments.measure:
        on_cpu = arguments.device == 'cpu'
        for recipe in cost.recipes(settings, on_cpu) if arguments.switches else [settings]:
            cost.measure(rows, profile, dataset, arguments.results, recipe, steps=arguments.steps, on_cpu=on_cpu)
    if arguments.switches:
        print(cost.write_switches(rows, profile, arguments.results, settings).read_text())
        return
    print(cost.write(cost.table(rows, profile, dataset, arguments.results, settings), profile, dataset,
                     arguments.results).read_text())


def _status(arguments) -> None:
    from amdlib import targets
    given = _given(arguments)
    wanted = targets.find_targets(arguments.targets or ['all'], given.get('group'))
    targets.status(wanted, arguments.profile, _prepare(arguments, lambda *_: None), arguments.results, given)


def _report(arguments) -> None:
    from amdlib import report
    print(report.build(arguments.profile, _prepare(arguments, _to_stderr), arguments.results))


def doctor() -> int:
    """Say what is there and what is missing; exit status 1 where something needed is missing."""
    print(f'{"python":22} {sys.version.split()[0]} ({sys.executable})')
    missing = []
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    for module, package in NEEDED.items():
        try:
            if module == 'mmdet':  # needs the operators in place
                importlib.import_module('amdlib.mmcv_ext')
            importlib.import_module(module)
            print(f'{package:22} {metadata.version(package)}')
        except Exception as error:  # a broken package is as good as a missing one
            missing.append(package)
            print(f'{package:22} MISSING: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}')
    if 'torch' not in missing:
        import torch
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        built = f'torch is built for CUDA {torch.version.cuda}' if torch.version.cuda else 'torch is a CPU build'
        print(f'{"GPU":22} {", ".join(gpus) or "none visible"} ({built})')
        print(f'{"threads":22} {torch.get_num_threads()}')
    if not {'torch', 'torchvision', 'mmcv-lite'} & set(missing):
        from amdlib import mmcv_ext
        print(f'{"operators":22} {mmcv_ext.backend()}')
    if missing:
        print(f'\nmissing: {", ".join(missing)}\nmend it: make setup (or: pip install --no-deps -r requirements.lock)')
        return 1
    print('\nnothing is missing')
    return 0


if __name__ == '__main__':
    sys.exit(main())
