"""study.py: what is asked, what is trained for it, and the table; and the configs that runs.adapt makes."""
import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from amdlib.cli import main
from amdlib.datasets import trained_images
from amdlib.errors import DataError, SettingError
from amdlib.paper.pairs import Group
from amdlib.paper.rows import row_of
from amdlib.runs import adapt
from amdlib.runs.config import config
from amdlib.runs.originals import config_digest, get_config
from amdlib.runs.run import Run, table_runs
from amdlib.runs.train import train
from amdlib.study.prediction import predict
from amdlib.study.study import SPEED, Study
from amdlib.weights.reading import read_weights
from tests.conftest import OWN
from tests.runs.slurm import Fake


@pytest.fixture
def run_of(dataset, asked):
    """Config of mmdet's, and what differs in the profile -> the baseline's run; no detector is built."""
    def make(name, **changes):
        study = Study.of(asked(student=name, teacher=name, size=changes.pop('size', 320), epochs=30))
        group = Group('own', 'a', 'b', name, name, '', levels=(0,), places=((0, 0),), own=True)
        return Run.of(row_of(group, 'baseline'), replace(study._profile(), **changes))
    return make


def test_what_cannot_be_trained_is_told_before_anything_is(home, asked, capsys):
    broken = home / 'untrainable.py'
    broken.write_text(f"_base_ = {str(home / 'small.py')!r}\n"
                      "optim_wrapper = dict(optimizer=dict(type='SGD', no_such=1))")
    study = Study.of(asked(student=str(broken)))
    tried = study.try_steps().set_index('row').problem
    assert tried['untrainable-teacher'] == ''
    assert 'no_such' in tried['untrainable-baseline']
    assert 'no_such' in tried['untrainable-amd']
    assert not list(study.store.folder.glob('runs/*'))


# ---- configs ------------------------------------------------------------------------------------------------------

def test_rtmdet_keeps_its_stages_and_its_proportions(run_of, dataset):
    cfg = config(run_of('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'), dataset)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['CachedMosaic'].img_scale == (320, 320)
    assert steps['RandomResize'].scale == (640, 640)
    assert steps['RandomCrop'].crop_size == steps['Pad'].size == (320, 320)
    assert steps['RandomResize'].ratio_range == (0.5, 2.0)
    assert list(steps)[0] == 'SeedPicture'
    switch = next(hook for hook in cfg.custom_hooks if hook.type == 'PipelineSwitchHook')
    assert switch.switch_epoch == 28
    assert [step.type for step in switch.switch_pipeline[:3]] == ['SeedPicture', 'LoadImageFromFile', 'LoadAnnotations']
    assert next(step for step in switch.switch_pipeline if step.type == 'RandomCrop').crop_size == (320, 320)
    assert cfg.param_scheduler[1].begin == 15
    assert cfg.param_scheduler[1].end == 30
    steps = run_of('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').steps(
        len(trained_images(dataset.train_ann, dataset.negatives)))
    assert cfg.param_scheduler[0].end == steps // 4 < 1000      # of so few steps a warm-up is not all
    assert cfg.model.bbox_head.num_classes == len(dataset.classes)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'PipelineSwitchHook', 'KeepAverageHook']


def test_yolox_a_data_set_within_another_and_its_batches(run_of, dataset):
    cfg = config(run_of('mmdet::yolox/yolox_s_8xb8-300e_coco.py'), dataset)
    outer = cfg.train_dataloader.dataset
    assert outer.type == 'MultiImageMixDataset'
    assert outer.dataset.ann_file == str(dataset.train_ann)
    assert outer.dataset.pipeline[0].type == 'SeedPicture'
    assert {step.type: step for step in outer.pipeline}['RandomAffine'].border == (-160, -160)
    assert cfg.model.data_preprocessor.batch_augments[0].random_size_range == (256, 384)   # near 240 and 400
    assert cfg.custom_hooks[0].num_last_epochs == 2
    assert cfg.auto_scale_lr.base_batch_size == 64
    assert [part.end for part in cfg.param_scheduler] == [1, 28, 30]


def test_classes_in_every_head_and_none_in_the_backbone(run_of, dataset):
    cfg = config(run_of('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'), dataset)
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [len(dataset.classes)] * 3


@pytest.mark.parametrize(('epochs', 'end'), [(1, 1), (24, 12), (999, 499), (1500, 500)])
def test_a_warm_up_is_a_quarter_of_the_steps_at_most(run_of, dataset, epochs, end):
    images = len(trained_images(dataset.train_ann, dataset.negatives))
    run = run_of('mmdet::gfl/gfl_r50_fpn_1x_coco.py', epochs={'student': epochs}, batch_size=-(-images // 2))
    assert run.steps(images) == 2 * epochs
    assert config(run, dataset).param_scheduler[0].end == end


def test_transforms_within_transforms_are_resized(run_of, dataset):
    cfg = config(run_of('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', size=1333 // 2), dataset)
    choice = next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomChoice')
    assert choice.transforms[0][0].scales[0] == (400, 666)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert cfg.param_scheduler[0].milestones == [24]


def test_a_size_is_the_longer_side_of_pictures_of_any_proportion(run_of, dataset):
    cfg = config(run_of('mmdet::gfl/gfl_r50_fpn_1x_coco.py', size=320), dataset)     # 1333 x 800
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert next(step for step in loader.dataset.pipeline if step.type == 'Resize').scale == (320, 320)
    whole = config(run_of('mmdet::gfl/gfl_r50_fpn_1x_coco.py', size=None), dataset)
    assert next(step for step in whole.test_dataloader.dataset.pipeline if step.type == 'Resize').scale == (1333, 800)


def test_a_schedule_that_knows_no_epochs_is_refused(home, asked):
    file = home / 'iterations.py'
    file.write_text(f"_base_ = {str(home / 'small.py')!r}\n"
                    "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=100)")
    with pytest.raises(SettingError, match='its schedule has no epochs'):
        Study.of(asked(student=str(file))).describe()


def test_what_is_changed_is_told_and_nothing_else(asked):
    told = Study.of(asked()).describe()
    assert 'model.bbox_head.num_classes: 80 -> ' in told
    assert 'train_cfg.max_epochs: 12 -> 1' in told
    assert 'test_evaluator: CocoMetric -> CocoNumbers' in told
    assert told.count('test_evaluator') == 1
    for kept in ('optim_wrapper', 'neck', 'loss_cls', 'nms'):
        assert kept not in told.partition('changed')[2]


def test_a_teacher_and_a_student_of_other_paddings(asked, home):
    wide = home / 'wide.py'
    wide.write_text(f"_base_ = {str(home / 'large.py')!r}\nmodel = dict(data_preprocessor=dict(pad_size_divisor=48))")
    study = Study.of(asked(teacher=str(wide)))
    run = next(run for run in study.runs() if run.row.method)
    assert config(run, study.store.dataset).model.student.data_preprocessor.pad_size_divisor == 96


def test_named_modules_reach_the_distiller_at_the_levels_that_are_asked(asked):
    study = Study.of(asked(features='neck.fpn_convs.0,neck.fpn_convs.2', settings={'levels': [1]}))
    cfg = config(next(run for run in study.runs() if run.row.method), study.store.dataset)
    assert (cfg.model.student_module, cfg.model.teacher_module, cfg.model.levels) == (['neck.fpn_convs.2'], [2], (1,))


def test_a_share_is_for_pairs_of_ones_own(asked):
    study = Study.of(asked(share=0.3))
    cfg = config(next(run for run in study.runs() if run.row.method), study.store.dataset)
    assert cfg.model.share == 0.3
    assert [run.id for run in study.runs()] == [
        'small-teacher-s0', 'small-baseline-s0', 'small-amd+share=0.3-s0']
    with pytest.raises(SettingError, match='share sets the weights; factor=0.1 would do nothing'):
        Study.of(asked(share=0.3, settings={'factor': 0.1})).runs()
    with pytest.raises(SettingError, match='share=1.5: expected a number below 1'):
        Study.of(asked(share=1.5)).runs()
    with pytest.raises(SettingError, match="share=0.3: a pair of the paper's takes the weights as published"):
        Run.of('retinanet-amd', 'mini', 0, {'share': 0.3})


def test_on_a_gpu_the_faster_ways_are_taken_unless_exactness_is_asked(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    fast = 'amp=bf16+channels_last=True+fused=True+tf32=True-s0'
    study = Study.of(asked())
    assert all(run.id.endswith(fast) for run in study.runs())
    assert 'speed: amp=bf16' in study.describe()
    assert not any(run.settings for run in Study.of(asked(exact=True)).runs())
    monkeypatch.setattr('amdlib.study.studied.run_missing', lambda *_: None)
    study.run(device='cpu')     # what began exact goes on so, wherever
    assert not any(run.settings for run in study.runs())
    assert 'speed: exact' in study.describe()
    assert all(run.id.endswith(fast) for run in Study.of(asked(exact=False)).runs())


# ---- what is asked ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('changes', 'told'), [
    ({'epoch': 3}, "a study has no 'epoch'; it has: baseline, "), ({'student': ''}, 'a study needs student'),
    ({'epochs': 0}, 'epochs=0: expected a whole number above 0'), ({'seeds': ['a']}, r"seeds=\('a',\): expected whole"),
    ({'methods': ['adm']}, "unknown method 'adm'"), ({'name': '../x'}, "name='../x': expected letters"),
    ({'settings': {'phy': 1}}, "a table has no setting 'phy'"), ({'controls': ['nothing']}, "unknown row 'nothing'")])
def test_what_is_wrong_is_told_before_anything_is_trained(asked, changes, told):
    with pytest.raises(SettingError, match=told):
        Study.of(asked(**changes)).runs()


def test_a_toml_file_and_its_relative_paths(home, asked):
    file = home / 'mine.toml'
    file.write_text('data = "data"\nstudent = "small.py"\nteacher = "large.py"\nmethods = ["amd", "mgd"]\n'
                    'seeds = [0, 1]\nscratch = true\nepochs = 2\nsplit = 0.8\n[settings]\nfactor = 0.5\n')
    study = Study.read(file)
    assert (study.name, study.data, study.student) == ('mine', str(home / 'data'), str(home / 'small.py'))
    assert study.choice == {'split': 0.8}
    file.write_text('data = ')
    with pytest.raises(SettingError, match='not readable as TOML'):
        Study.read(file)


def test_a_run_goes_through_a_job_file_as_it_is(asked):
    for run in Study.of(asked(methods=['amd', 'mgd'], controls=['inherit', 'amd-permuted'], seeds=[3])).runs():
        assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_study_is_handed_to_slurm_and_its_queue_is_asked(home, tmp_path, monkeypatch, capsys):
    fake, file = Fake(tmp_path / 'slurm', monkeypatch), home / 'queued.toml'
    file.write_text(f'data = "data"\nstudent = "small.py"\nteacher = "large.py"\nmethods = ["amd", "mgd"]\n'
                    f'scratch = true\nsize = 64\nepochs = 1\nresults = {str(tmp_path / "results")!r}\n')
    assert main(['batch', str(file), '--slurm=--partition=gpu', '--jobs', '2']) == 0
    assert fake.asked('sbatch') == [['--parsable', '--array=0-1%2', 'batch.sh'],
                                    ['--parsable', '--array=2-3%2', '--dependency=afterany:12_0', 'batch.sh']]
    study = Study.read(file)
    place = study.store.folder
    assert '#SBATCH --partition=gpu\n' in (place / 'slurm' / 'queued-1' / 'batch.sh').read_text()
    assert (place / SPEED).is_file()        # an entry on another machine decides nothing anew
    job = json.loads((place / 'runs' / study.runs()[-1].id / 'job.json').read_text())
    assert Run.from_dict(job['run']) == study.runs()[-1]
    fake.queue('12_0|RUNNING|None', '12_1|PENDING|Resources', '13_2|PENDING|Dependency', '13_3|PENDING|Dependency')
    capsys.readouterr()
    assert main(['status', str(file), '--on', 'slurm']) == 0
    out = capsys.readouterr().out
    assert [re.search(rf'^{re.escape(run.id)} +(\w+)  ', out, re.MULTILINE)[1] for run in study.runs()] == [
        'running', 'waiting', 'waiting', 'waiting']
    assert main(['batch', str(file)]) == 0
    assert len(fake.asked('sbatch')) == 2       # nothing twice


# ---- all of it ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def finished(home, tmp_path_factory):
    """A study of a teacher, two students and a loss of the user's, trained for an epoch."""
    (home / 'own.py').write_text(OWN)
    file = home / 'whole.toml'
    file.write_text(f'data = "data"\nstudent = "small.py"\nteacher = "large.py"\nmethods = ["amd", "own.py:Own"]\n'
                    f'scratch = true\nsize = 64\nepochs = 1\nbatch_size = 4\n'
                    f'results = {str(tmp_path_factory.mktemp("results"))!r}\n')
    before = torch.get_num_threads()
    study = Study.read(file)
    for run in study.runs():
        train(run, study._store({}))
    torch.set_num_threads(before)
    return file, study


def test_a_study_ends_with_a_table_and_plain_checkpoints(finished):
    _, study = finished
    table = study.table(resamples=20)
    assert table.iloc[:, 0].tolist() == ['Teacher', 'baseline', 'AMD', 'Own']
    assert table.columns[:4].tolist() == ['', 'mAP', 'gain', 'verdict']     # a terminal leaves out the last ones
    assert table.gain.tolist()[:2] == ['', '']
    assert isinstance(table, pd.DataFrame)
    run = next(run for run in study.runs() if run.row.name == 'amd')
    record = study._store({}).record(run)
    names = set(read_weights(study._store({}).weights(run)))
    assert {name.split('.')[0] for name in names} == {'backbone', 'neck', 'bbox_head'}
    assert record['config']['model']['student_module'] == 'auto'
    scales = record['config']['model']['scales']
    assert len(scales) == 5
    assert all(scale > 0 for scale in scales)
    assert 'home' not in json.dumps(record['config'])


def test_what_was_told_while_it_trained_stands_below_the_table(finished):
    _, study = finished
    file = study._store({}).run_folder(study.runs()[-1]) / 'record.json'
    text = file.read_text()
    record = json.loads(text)
    record['bed']['warnings'] = ['distillation is 12.8 times the detection loss (median of steps 1 to 50)']
    file.write_text(json.dumps(record))
    assert study.warnings() == ['warning, Own: distillation is 12.8 times the detection loss (median of steps 1 to 50) '
                                '[seed 0]']
    assert '- warning, Own: distillation is 12.8' in study.write().read_text()
    file.write_text(text)


def test_a_picture_is_looked_at(finished, tmp_path):
    _, study = finished
    pictures = study.test_pictures()
    assert {file.name for file in pictures} == {file.name for file in study.store.dataset.test_images.iterdir()}
    picture = pictures[0]
    written = study.export('baseline', output=tmp_path)     # an epoch leaves every score low
    text = written['config'].read_text()
    assert 'score_thr=0.05' in text
    written['config'].write_text(text.replace('score_thr=0.05', 'score_thr=0.0'))
    found = predict(picture, written['config'], written['weights'], 'baseline', 0.0)
    assert found.table().columns.tolist() == ['class', 'score', 'x', 'y', 'width', 'height']
    assert set(found.classes) <= set(study.store.dataset.classes)
    assert len(found.classes) > 1
    assert list(found.scores) == sorted(found.scores, reverse=True)
    width, height = found.bgr.shape[1::-1]
    assert (found.boxes_xywh_px[:, 2:] >= 0).all()
    assert (found.boxes_xywh_px[:, :2] + found.boxes_xywh_px[:, 2:] <= [width + 1e-3, height + 1e-3]).all()
    assert found._repr_png_().startswith(b'\x89PNG')
    assert study.predict(found.bgr, score=1.1).by == 'amd'
    assert study.predict(picture, 'Own', score=1.1).table().empty
    (tmp_path / 'x.png').write_text('no picture')
    with pytest.raises(DataError, match='not readable as a picture'):
        study.predict(tmp_path / 'x.png')


def test_an_exported_student_is_read_by_stock_mmdet(finished, tmp_path):
    _, study = finished
    written = study.export('amd', output=tmp_path)
    from mmdet.apis import inference_detector, init_detector
    model = init_detector(str(written['config']), str(written['weights']), device='cpu')
    picture = next(study.store.dataset.test_images.iterdir())
    assert model.dataset_meta['classes'] == study.store.dataset.classes
    assert inference_detector(model, str(picture)).pred_instances.bboxes.shape[1] == 4
    assert 'amdlib' not in written['config'].read_text()
    with pytest.raises(SettingError, match="the study has no 'mgd'; it has: amd, baseline, own.Own, teacher"):
        study.export('mgd')


def test_the_command_line_finds_it_done_and_a_changed_config_makes_it_stale(finished, capsys):
    file, study = finished
    assert main(['run', str(file)]) == 0
    told = capsys.readouterr().out
    assert 'open ' in told
    assert '| AMD ' in told
    assert (study.store.folder / 'table.md').is_file()
    assert main(['status', str(file)]) == 0
    assert '4 of 4 done\n' in capsys.readouterr().out
    assert main(['table', str(file)]) == 0
    assert all(line.startswith('|') for line in capsys.readouterr().out.splitlines())
    assert main(['check', str(file)]) == 0
    told = capsys.readouterr().out
    assert '4 of 4 done\n' in told
    for row in ('teacher', 'baseline', 'amd', 'own.Own'):
        assert re.search(fr'\| small-{row} +\| \d+\.\d\d +\| 2 +\| 0:0\d +\| \d+\.\d +\| +\|', told)
    config_file = file.parent / 'small.py'
    text = config_file.read_text()
    config_file.write_text(f'{text}\noptim_wrapper = dict(optimizer=dict(weight_decay=0.5))\n')
    for cached in (get_config, config_digest):
        cached.cache_clear()
    try:
        assert main(['status', str(file)]) == 0
        assert re.search('stale +made with other settings', capsys.readouterr().out)
    finally:
        config_file.write_text(text)
        for cached in (get_config, config_digest):
            cached.cache_clear()


def test_a_report_of_a_study_has_its_verdicts_and_a_page_a_run(finished, capsys):
    file, study = finished
    assert main(['report', str(file)]) == 0
    front = study.store.folder / 'report' / 'index.html'
    assert f'open {front}' in capsys.readouterr().out
    text = front.read_text()
    assert text.count('class="interval"') == 2      # AMD, Own
    assert all(verdict in text for verdict in study.table(resamples=1000).verdict)
    assert 'model.bbox_head.num_classes: 80 -&gt; ' in text
    for run in study.runs():
        assert f'href="runs/{run.id}.html"' in text
    page = (front.parent / 'runs' / 'small-amd-s0.html').read_text()
    assert 'python -m amdlib run whole.toml' in page
    assert 'Over <a href="../runs/small-baseline-s0.html">' in page
    assert main(['report', str(file), '--compare', 'a', 'b']) == 1
    assert '--compare is for a results' in capsys.readouterr().err


def test_a_given_teacher_of_other_classes_is_used_and_not_evaluated(finished, asked, home, tmp_path):
    _, study = finished
    own = study.runs()[0]
    weights = {name: value for name, value in read_weights(study._store({}).weights(own)).items()}
    for name in [name for name in weights if 'gfl_cls' in name]:
        weights[name] = torch.zeros(80, *weights[name].shape[1:])
    file = tmp_path / 'best.pth'
    torch.save({'state_dict': weights, 'meta': {'CLASSES': ['person']}}, file)
    given = Study.of(asked(teacher_weights=str(file)))
    teacher = given.runs()[0]
    record = train(teacher, given._store({}))
    assert set(record['numbers'].values()) == {None}
    assert record['steps'] == 0
    assert 'done     – mAP' in given.status()[0]
    assert adapt.plain_pictures(config(teacher, given.store.dataset), given.store.dataset).indices == adapt.MEASURED


def test_a_table_of_the_papers_is_a_study(store, capsys, monkeypatch):
    monkeypatch.setattr('amdlib.study.paper_table.open_store', lambda *_, **__: store)
    assert main(['check', 'table1', '--group', 'retinanet', '--seeds', '0', '1']) == 0
    told = capsys.readouterr().out
    assert 'RetinaNet <- RetinaNet: Teacher, baseline, inherit, ' in told
    lines = [line for line in told.splitlines() if line.startswith('| retinanet-')]
    assert [line.split()[1] for line in lines] == [f'retinanet-{name}' for name in (
        'teacher', 'baseline', 'inherit', 'fkd', 'fgd', 'mgd', 'amd')]
    assert not list(store.folder.glob('runs/*'))


def test_what_a_study_of_the_paper_trains_is_what_its_table_compares(tmp_path):
    file = tmp_path / 'ours.toml'
    (tmp_path / 'own.py').write_text(OWN)
    file.write_text('paper = "table1"\npairs = ["retinanet"]\nmethods = ["own.py:Own"]\nseeds = [1, 2]\n'
                    'arm = "inherit"\ncontrols = true\n[settings]\nfactor = 0.1\n')
    study = Study.read(file)
    assert study.runs() == table_runs('table1', 'mini', 'retinanet', (1, 2), {'factor': 0.1},
                                      [f'{tmp_path / "own.py"}:Own'], 'inherit', True)
    assert [run.id for run in Study.of({'paper': 'table6'}).runs()] == [
        'faster_rcnn-amd-s0', 'faster_rcnn-amd-within-s0']
    file.write_text('paper = "table1"\npair = "retinanet"\n')
    with pytest.raises(SettingError, match=f"{file}: a study has no 'pair'; it has: arm, calibrated"):
        Study.read(file)
    for wrong, told in (({'paper': 'table7'}, 'unknown table'), ({'paper': 'table2', 'pairs': 'reppoints'}, 'no group'),
                        ({'paper': 'table1', 'profile': 'large'}, 'unknown profile')):
        with pytest.raises(SettingError, match=told):
            Study.of(wrong)


# ---- options of single methods ------------------------------------------------------------------------------------

def test_options_of_a_method_reach_it_and_its_controls(home, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)     # where its data are prepared
    (home / 'own.py').write_text(OWN)
    file = home / 'mine.toml'
    words = ('data = "data"\nstudent = "small.py"\nteacher = "large.py"\nmethods = ["amd", "mgd", "own.py:Own"]\n'
             'controls = ["amd-permuted", "amd-channel"]\nscratch = true\nsize = 64\nepochs = 1\n')
    file.write_text(f'{words}[options.amd]\nphi = 0.7\nspatial = "inverted"\n[options.amd-channel]\nfactor = 0.5\n'
                    '[options."own.py:Own"]\nweight = 2\n')
    assert [run.id.removeprefix('small-') for run in Study.read(file).runs()] == [
        'teacher-s0', 'baseline-s0', 'amd-permuted+phi=0.7-s0', 'amd-channel+factor=0.5+phi=0.7-s0',
        'amd+phi=0.7+spatial=inverted-s0', 'mgd-s0', 'own.Own+weight=2.0-s0']
    config_of = config(Study.read(file).runs()[4], Study.read(file).store.dataset)
    assert config_of.model.options['phi'] == 0.7
    for options, told in (('phy = 0.7', "options.amd: small-amd has no setting 'phy'"),
                          ('phi = "x"', "options.amd: phi='x': expected float"),
                          ('temperature = -1.0', 'options.amd: small-amd: temperature=-1.0: expected a finite number')):
        file.write_text(f'{words}[options.amd]\n{options}\n')
        with pytest.raises(SettingError, match=f'{file}: {told}'):
            Study.read(file)
    file.write_text(f'{words}[options.adm]\nphi = 0.7\n')
    with pytest.raises(SettingError, match=r'options.adm: no such method or control here; expected one of: amd, mgd'):
        Study.read(file)
    with pytest.raises(SettingError, match='expected names and values, such as phi = 0.7'):
        Study.of(asked(options={'amd': 0.7}))


def test_options_on_the_command_line(asked, monkeypatch):
    made = []
    monkeypatch.setattr('amdlib.cli.studies._run', lambda study, means: made.append((study, means)))
    given = asked()
    assert main(['distill', '--data', given['data'], '--student', given['student'], '--teacher', given['teacher'],
                 '--methods', 'amd,mgd', '--set', 'amd.phi=0.7', '--set', 'factor=0.1', '--jobs', '2']) == 0
    ((study, means),) = made
    assert (study.options, study.settings, means) == ({'amd': {'phi': 0.7}}, {'factor': 0.1}, {'jobs': 2})


def test_what_is_given_beside_a_study_is_not_left_unsaid(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.toml').write_text('paper = "table1"\n')
    for words, told in ((['check', 'mine.toml', '--set', 'phi=1'], '--set: expected in mine.toml'),
                        (['table', 'mine.toml', '--seeds', '1'], '--seeds: expected in mine.toml'),
                        (['run', 'table1', '--seed', '1'], 'table1: --seed is for a row'),
                        (['run', 'retinanet-amd', '--controls'], 'retinanet-amd: --controls is for a table')):
        assert main(words) == 1
        assert told in capsys.readouterr().err


def test_without_a_baseline_there_are_no_gains(asked):
    assert [run.row.name for run in Study.of(asked(baseline=False)).runs()] == ['teacher', 'amd']


def test_a_built_model_is_no_student_of_a_study(asked):
    with pytest.raises(SettingError, match='student: Linear: a run trains in a process of its own, which builds its'):
        Study.of(asked(student=torch.nn.Linear(1, 1)))
