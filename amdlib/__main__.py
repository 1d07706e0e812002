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
          'pkg_resources': 'setuptools'}  # mmengine reads mmdet:: configs through it; setuptools >= 81 has it no more


def main(words: list[str] | None = None) -> int:
    """Exit status: 0, 1 for an error that is told in a line, 2 for wrong usage."""
    arguments = _parser().parse_args(words)
    if arguments.command == 'doctor':
        return doctor()
    if getattr(arguments, 'device', None):
        _choose_device(arguments.device)
    from amdlib.batch import BatchError
    from amdlib.data import DataError
    from amdlib.experiments import SettingError
    from amdlib.export import ExportError
    from amdlib.notebooks import NotebookError
    from amdlib.results import ResultError
    from amdlib.train import TrainingError
    from amdlib.weights import WeightsError
    try:
        return arguments.do(arguments) or 0
    except (BatchError, DataError, SettingError, ExportError, NotebookError, ResultError, TrainingError, WeightsError,
            FileNotFoundError) as error:
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
    where.add_argument('--data', metavar='DIR', help='data set folder, for the profiles small and paper')
    where.add_argument('--results', type=Path, default=ROOT / 'results', metavar='DIR', help='default: results/')
    changes = argparse.ArgumentParser(add_help=False)
    changes.add_argument('--seed', type=int, default=0)
    changes.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                         help='epochs, batch_size, lr, amp, a weight file (backbone, teacher_backbone, '
                              "teacher_checkpoint), or an argument of the method's loss such as phi; repeatable, part "
                              "of the run's name")

    add('list', _list, 'list every row with the paper\'s value')
    add('values', _values, "print every value of the paper's experiments with its source")
    show = add('show', _show, "print a run's whole mmengine config as Python text", where, changes)
    show.add_argument('row')
    run = add('run', _run, 'train and evaluate one row (and its teacher, where that is missing)', where, changes)
    run.add_argument('row')
    run.add_argument('--device', help='cpu, cuda or cuda:N; default: a GPU where there is one')
    run.add_argument('--force', action='store_true', help='train again although the run is done')
    run.add_argument('--work-dir', metavar='DIR', help='put the run here, outside the tables')
    run.add_argument('--resume', action='store_true', help='go on from the last checkpoint of an unfinished run')
    run.add_argument('--amp', action='store_true', help='mixed precision; the same as --set amp=True')
    run.add_argument('--tensorboard', action='store_true',
                     help="write what is logged into tensorboard/ of the run's folder; the same as AMD_TENSORBOARD=1")
    run.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                     help="change mmengine's config by dotted keys; needs --work-dir")
    add('data', _data, 'prepare and check a data set', where)
    table = add('table', _table, 'print Table I from the records that are there', where)
    table.add_argument('--group', help='only this group')
    table.add_argument('--seeds', default='0', help='comma-separated; default 0')
    table.add_argument('--epochs', type=int, help='of runs made with EPOCHS=')
    export = add('export', _export, 'write the detector of a finished run as files for stock mmdet', where)
    export.add_argument('run', help="name of the run's folder, such as retinanet-amd-s0, or the folder")
    export.add_argument('--output', metavar='DIR', help="default: export/ in the run's folder")
    export.add_argument('--onnx', action='store_true', help='also as ONNX, compared with torch (RetinaNet)')
    export.add_argument('--stale-ok', action='store_true', help='although the run would be made again now')
    export.add_argument('--set', action='append', default=[], metavar='KEY=FILE', dest='files',
                        help='a weight file that the run was made with; repeatable')
    notebook = add('notebook', _notebook, 'execute a notebook by papermill; its output appears here', where)
    notebook.add_argument('name', help='file name in notebooks/, without .ipynb')
    notebook.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='settings',
                          help='a parameter of the notebook; an unknown one is an error')
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
    if number:
        os.environ['CUDA_VISIBLE_DEVICES'] = number
    if not torch.cuda.is_available():
        raise SystemExit(f'error: --device {device}: torch sees no such GPU (python -m amdlib doctor tells more)')


def _pairs(words: list[str]) -> dict[str, str]:
    from amdlib.experiments import SettingError
    pairs = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or not key:
            raise SettingError(f'{word!r}: expected KEY=VALUE')
        pairs[key] = value
    return pairs


def _prepare(arguments, say=print):
    from amdlib import data
    from amdlib.experiments import find_profile
    find_profile(arguments.profile)
    return data.prepare(arguments.profile, Path(arguments.data) if arguments.data else None, ROOT / 'data', log=say)


def _to_stderr(*words) -> None:
    print(*words, file=sys.stderr)


def _list(_arguments) -> None:
    from amdlib.experiments import PROFILES, ROWS, Run
    from amdlib.results import paper_table, paper_value
    paper = paper_table('I').set_index(['group', 'row'])
    profiles = ' '.join(f'{name:>6}' for name in PROFILES)
    print(f'{"row":22} {"paper mAP":>9}  {"detector":18} {"method":7} {profiles} epochs')
    for row in ROWS.values():
        value = paper_value(paper, row.group.name, row.label, 'mAP')
        # the paper's teachers are published checkpoints
        epochs = ' '.join(f'{"-" if name == "paper" and row.is_teacher else Run(row, profile).epochs:>6}'
                          for name, profile in PROFILES.items())
        detector = row.group.teacher_label if row.is_teacher else row.group.student_label
        print(f'{row.id:22} {value:9.1f}  {detector:18} {row.method or "-":7} {epochs}')
    print('\nassumed values (the paper does not state them): alpha, T = 0.5, phi = 1.0, SE reduction, random mask '
          'ratio, inheriting; see README')


def _values(_arguments) -> None:
    from amdlib.values import as_text, paper_values
    print(as_text(paper_values()))


def _show(arguments) -> None:
    from amdlib.experiments import Run, config
    run = Run.of(arguments.row, arguments.profile, arguments.seed, _pairs(arguments.settings))
    dataset = None if arguments.profile == 'paper' and not arguments.data else _prepare(arguments, _to_stderr)
    print(config(run, dataset).pretty_text)


def _run(arguments) -> None:
    from amdlib.experiments import Run
    from amdlib.train import run_row
    settings = _pairs(arguments.settings)
    if arguments.amp:
        settings['amp'] = 'True'
    run = Run.of(arguments.row, arguments.profile, arguments.seed, settings)
    options = None
    if arguments.cfg_options:
        options = {key: _option(value) for key, value in _pairs(arguments.cfg_options).items()}
    run_row(run, _prepare(arguments), arguments.results, force=arguments.force, resume=arguments.resume,
            work_dir=arguments.work_dir, cfg_options=options, tensorboard=arguments.tensorboard)


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
    from amdlib import results
    from amdlib.experiments import table_runs
    runs = table_runs('table1', arguments.profile, arguments.group, arguments.seeds, {'epochs': arguments.epochs})
    records = results.collect(runs, _prepare(arguments, _to_stderr), arguments.results)
    tidy = results.table1(records)
    for group in tidy.group.unique():
        print(f'\n{group}\n{results.table1_wide(tidy, group).to_markdown(index=False)}')


def _export(arguments) -> None:
    from amdlib import export
    arguments.profile = export.profile_of(arguments.run) or arguments.profile
    export.export(arguments.run, arguments.profile, _prepare(arguments, _to_stderr), arguments.results,
                  output=arguments.output, onnx=arguments.onnx, files=_pairs(arguments.files),
                  stale_ok=arguments.stale_ok)


def _notebook(arguments) -> None:
    from amdlib import notebooks, results
    dataset = _prepare(arguments, lambda *_: None)
    place = results.folder(arguments.profile, dataset, arguments.results)
    settings = {'profile': arguments.profile, 'data': arguments.data, 'results_dir': arguments.results,
                **_pairs(arguments.settings)}
    for name in ('data', 'results_dir', 'backbone', 'teacher_backbone', 'teacher_checkpoint'):
        if settings.get(name):  # the notebook runs in a folder of its own
            settings[name] = str(Path(settings[name]).resolve())
    notebooks.execute(ROOT / 'notebooks' / f'{arguments.name}.ipynb', place / f'{arguments.name}.ipynb', settings)


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
