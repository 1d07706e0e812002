"""distributed.py: several processes over gloo compute what one computes; one record; errors are told."""
import copy
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import MMDistributedDataParallel

from amdlib import distill, distributed, results
from amdlib.experiments import Run, config, shorter
from amdlib.train import TrainingError, run_row

PROCESSES = 2


def _model(cfg):
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()     # statistics of a batch are those of a process; the paper's networks keep theirs too
    return model


def _gradients(model, data):
    module = getattr(model, 'module', model)
    data = module.data_preprocessor(copy.deepcopy(data), training=True)
    total, _ = module.parse_losses(model(**data, mode='loss'))
    total.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def _process(rank, cfg, data, folder):
    try:
        torch.set_num_threads(1)
        torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                                             world_size=PROCESSES)
        model = _model(cfg)
        wrapped = MMDistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False)
        share = {key: value[rank::PROCESSES] for key, value in data.items()}
        gradients = _gradients(wrapped, share)
        assert not any('teacher' in name for name in wrapped.state_dict())
        torch.save(gradients, folder / f'gradients-{rank}')
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f'error-{rank}').write_text(traceback.format_exc())
        raise


@pytest.fixture
def joint_and_shared(tmp_path, train_batch):
    """Config, data of one step -> gradients of one process with all images, and of each of two with its share."""
    def compute(cfg, data):
        joint = _gradients(_model(cfg), data)
        fork = multiprocessing.get_context('fork')
        processes = [fork.Process(target=_process, args=(rank, cfg, data, tmp_path)) for rank in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        told = ''.join(path.read_text() for path in tmp_path.glob('error-*'))
        assert not told, told
        return joint, [torch.load(tmp_path / f'gradients-{rank}') for rank in range(PROCESSES)]
    return compute


@pytest.mark.slow
@pytest.mark.parametrize('same_boxes', [True, False])
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(dataset, tiny, train_batch, joint_and_shared,
                                                                      same_boxes):
    """mmdet divides a detector's loss by the positives of a process, so the whole gradient is equal where both have as
    many; AMD divides by images, so its blocks' gradients are equal whatever the boxes."""
    cfg = config(Run.of('retinanet-amd', tiny), dataset)
    data = train_batch(cfg)
    first, second = data['data_samples']
    assert not torch.equal(*data['inputs'])
    if same_boxes:
        second.gt_instances = copy.deepcopy(first.gt_instances)
    joint, shared = joint_and_shared(cfg, data)
    assert all(gradient is not None for gradient in joint.values())   # no parameter is left out
    compared = [name for name in joint if same_boxes or name.startswith('distill_losses')]
    assert len(compared) > 20
    for gradients in shared:
        for name in compared:
            scale = joint[name].abs().max().clamp(min=1e-6)
            assert torch.allclose(gradients[name], joint[name], rtol=1e-3, atol=1e-4 * scale.item()), name
    assert all(torch.equal(shared[0][name], shared[1][name]) for name in joint)


@pytest.mark.slow
@pytest.mark.parametrize('row', ['retinanet-fkd', 'retinanet-fgd', 'retinanet-amd-allmasked', 'retinanet-amd-mbconv',
                                 'reppoints-mgd', 'reppoints-teacher', 'faster_rcnn-amd-within', 'faster_rcnn-teacher'])
def test_every_parameter_is_used_in_every_step(dataset, tiny, train_batch, row):
    """Else torch would refuse the second step, since unused parameters are not searched for."""
    cfg = config(Run.of(row, tiny), dataset)
    unused = [name for name, gradient in _gradients(_model(cfg), train_batch(cfg)).items() if gradient is None]
    assert unused == []


def test_processes_mask_differently_and_the_first_as_a_run_on_its_own(dataset, tiny, monkeypatch):
    cfg = config(Run.of('retinanet-mgd', tiny), dataset)

    def masks():
        return [part(torch.zeros(1, 1, 16, 16)) for part in _model(cfg).modules()
                if isinstance(part, distill.AMDLoss) or type(part).__name__ == 'RandomMask']
    alone = masks()
    assert len(alone) == 5
    for rank in (0, 1, 2):
        monkeypatch.setattr(distill, 'get_rank', lambda rank=rank: rank)
        equal = [torch.equal(mask, own) for mask, own in zip(masks(), alone, strict=True)]
        assert equal == [rank == 0] * 5


@pytest.mark.slow
def test_a_run_of_two_processes_leaves_one_record(dataset, tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    run = Run.of('retinanet-baseline', tiny, 0, {'gpus': PROCESSES, 'batch_size': 1})
    record = run_row(run, dataset, tmp_path, say=print)
    folder = results.run_folder(run, dataset, tmp_path)
    assert folder.name == 'retinanet-baseline+batch_size=1+gpus=2-s0'
    assert results.state(run, dataset, tmp_path).name == 'done'
    assert json.loads((folder / 'record.json').read_text()) == record
    assert (record['steps'], record['gpus'], record['device']) == (4, 2, 'CPU')     # 8 images, 2 x 1 a step
    assert list(record['numbers']) == list(results.METRICS)
    found = results.read_detections(folder / 'detections.json.gz')
    assert results.coco_numbers(dataset.test_ann, found) == record['numbers']
    assert not list(folder.glob('mmengine/job*')) and not list(folder.glob('mmengine/*.pth'))
    assert not (folder / 'mmengine' / 'parts').exists()
    out = capfd.readouterr().out
    assert out.count(f'{run.id}: lr 0.003 for 2 images a step (1 x 2 GPUs)') == 1   # told once, and not scaled


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on_bit_for_bit(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    run = Run.of('retinanet-baseline', tiny, 0, {'gpus': PROCESSES, 'batch_size': 1, 'epochs': 6})
    folder, said = results.run_folder(run, dataset, tmp_path), []

    def kill_first_process():
        while not (folder / 'mmengine' / 'epoch_2.pth').exists():
            time.sleep(0.01)
        os.kill(results.read_progress(folder)['pid'], signal.SIGKILL)
    killer = threading.Thread(target=kill_first_process, daemon=True)
    killer.start()
    with pytest.raises(TrainingError):
        run_row(run, dataset, tmp_path, say=said.append)
    killer.join()
    record = run_row(run, dataset, tmp_path, say=said.append)
    assert any('goes on after epoch' in line for line in said) and len(record['resumed_from']) == 1
    assert record['resumed_from'][0] >= 8
    whole = run_row(run, dataset, tmp_path, work_dir=tmp_path / 'whole', say=said.append)
    assert whole['resumed_from'] == [] and whole['numbers'] == record['numbers']
    first, second = (torch.load(place / 'weights.pth', weights_only=True)['state_dict']
                     for place in (folder, tmp_path / 'whole'))
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


LAUNCH = """
import pickle, sys
from pathlib import Path
from amdlib.train import run_row
run, dataset, results_dir = pickle.loads(Path(sys.argv[1]).read_bytes())
run_row(run, dataset, results_dir)
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_launched_them(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    run = Run.of('retinanet-baseline', shorter(tiny, workers=1), 0, {'gpus': PROCESSES, 'batch_size': 1, 'epochs': 99})
    folder = results.run_folder(run, dataset, tmp_path)
    (tmp_path / 'job').write_bytes(pickle.dumps((run, dataset, tmp_path)))
    launcher = subprocess.Popen([sys.executable, '-c', LAUNCH, str(tmp_path / 'job')],
                                cwd=Path(distributed.__file__).parents[1])
    try:
        until_s = time.monotonic() + 120
        while results.read_progress(folder).get('phase') != 'train':
            assert launcher.poll() is None and time.monotonic() < until_s
            time.sleep(0.1)
        below = psutil.Process(launcher.pid).children(recursive=True)
        assert len(below) >= 1 + PROCESSES    # torchrun, and what it started
    finally:
        launcher.kill()
        launcher.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
    assert results.state(run, dataset, tmp_path).name == 'failed'


# ---- refusals and errors ----------------------------------------------------------------------------------------

def test_more_gpus_than_there_are(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    with pytest.raises(TrainingError, match=r'gpus=4, but torch sees 2 \(CUDA_VISIBLE_DEVICES=0,1\)'):
        run_row(Run.of('retinanet-baseline', tiny, 0, {'gpus': 4, 'batch_size': 1}), dataset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_images_a_step_than_there_are(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(TrainingError, match='a step needs 10 images .batch_size=5 on 2 GPUs., mini has 8'):
        run_row(Run.of('retinanet-baseline', tiny, 0, {'gpus': 2, 'batch_size': 5}), dataset, tmp_path)
    with pytest.raises(TrainingError, match='a step needs 9 images .batch_size=9 on 1 GPU., mini has 8'):
        run_row(Run.of('retinanet-baseline', tiny, 0, {'batch_size': 9}), dataset, tmp_path)


CHILD = """#!/bin/sh
for folder; do :; done
if [ "$ENDS" = well ]; then echo '{"steps": 4}' > "$folder/job-record.json"; exit 0; fi
if [ "$ENDS" = told ]; then
    echo '{"rank": 1, "error": "OSError: disk", "traceback": "the\\\\nlines"}' > "$folder/job-failure.json"
fi
exit 7
"""


@pytest.mark.parametrize('ends', ['well', 'told', 'silent'])
def test_what_comes_back_from_the_processes(tmp_path, monkeypatch, ends):
    """A script stands in for torchrun."""
    script = tmp_path / 'child'
    script.write_text(CHILD)
    script.chmod(0o755)
    monkeypatch.setattr(distributed.sys, 'executable', str(script))
    monkeypatch.setenv('ENDS', ends)
    if ends == 'well':
        assert distributed.launch('a job', 2, tmp_path / 'folder') == {'steps': 4}
        assert not list((tmp_path / 'folder').iterdir())
        return
    with pytest.raises(distributed.ProcessError) as caught:
        distributed.launch('a job', 2, tmp_path / 'folder')
    if ends == 'told':
        assert str(caught.value) == 'process 1 of 2: OSError: disk' and caught.value.__notes__ == ['the\nlines']
    else:
        assert 'status 7' in str(caught.value)
