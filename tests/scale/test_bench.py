"""bench.py: ratios of what was measured in turn; each part does what it says and leaves nothing behind."""
import numpy as np
import pytest
import torch

from amdlib.runs.run import Run
from amdlib.scale import bench


def test_ratios_pair_the_rounds():
    """A machine that is slower in some rounds moves no ratio."""
    slow = np.array([1.0, 3.0, 1.0, 5.0, 2.0])
    assert bench.ratio(2 * slow, slow) == [2, 2, 2]
    assert bench.ratio(np.array([1.0, 2.0, 3.0]), np.ones(3)) == [2, 1.5, 2.5]


def test_every_part_runs_once_a_round_in_an_order_that_turns_and_the_first_round_does_not_count(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(bench, 'clock_s', lambda: now[0])

    def part(name, takes_s):
        def run():
            order.append(name)
            now[0] += takes_s * (100 if len(order) <= 2 else 1)
        return run
    found = bench.seconds({'a': part('a', 1.0), 'b': part('b', 4.0)}, 3)
    assert order == ['a', 'b', 'b', 'a', 'a', 'b', 'b', 'a']
    assert found['a'].tolist() == [1, 1, 1]
    assert found['b'].tolist() == [4, 4, 4]


@pytest.mark.parametrize('row', ['retinanet-amd', 'faster_rcnn-amd'])
def test_parts_of_a_step_move_only_what_they_train(store, row):
    parts = bench.step_parts(Run.of(row, store.profile), store)
    cell = parts['step'].__closure__
    model = next(one.cell_contents for one in cell if isinstance(one.cell_contents, torch.nn.Module))
    weights = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for name in ('detector', 'network', 'teacher', 'loss', 'convolutions', 'update'):
        parts[name]()
        assert all(p.grad is None for p in model.parameters()), name
    changed = [name for name, value in model.state_dict().items()
               if name in weights and value.is_floating_point() and not torch.equal(value, weights[name])]
    assert all('running_' in name for name in changed)
    parts['student']()
    after = model.state_dict()
    assert not torch.equal(weights['student.backbone.conv1.weight'], after['student.backbone.conv1.weight'])
    losses = [name for name in weights if name.startswith('distill_losses') and weights[name].is_floating_point()]
    assert losses
    assert all(torch.equal(weights[name], after[name]) for name in losses)
    parts['kept']()
    assert model.kept is None
    assert any(not torch.equal(weights[name], model.state_dict()[name]) for name in losses)


def test_a_bench_is_written_with_machine_and_goal(store, monkeypatch):
    monkeypatch.setattr(bench, 'SHAPES', ((8, 8), (4, 4)))
    monkeypatch.setattr(bench, 'CHANNELS', 4)
    monkeypatch.setattr(bench, 'LOSSES', ('amd', 'fgd'))
    monkeypatch.setattr(bench, 'OPERATOR_PX', (4, 5))
    monkeypatch.setattr(bench.where, 'of_job', lambda store, group: {'parts': {'start-up': 1.0, 'student: update': 3.0},
                                                                     'import_s': 5.0, 'runs': 3})
    text = bench.bench(store, ['retinanet'], rounds=2).read_text()
    assert '| retinanet | ' in text
    assert '| amd      | ' in text
    assert f'{torch.get_num_threads()} thread' in text
    assert 'the goal' in text
    assert 'Not arithmetic: 1 s, 25%. ' in text
    assert 'which would be 10 s more' in text
    assert (store.results / store.profile.name / 'bench.json').is_file()


@pytest.mark.parametrize('name', ['deformable convolution', 'RoIAlign', 'NMS'])
def test_ways_of_an_operator_agree(monkeypatch, name):
    """What is timed against each other is the same computation."""
    monkeypatch.setattr(bench, 'CHANNELS', 4)
    monkeypatch.setattr(bench, 'OPERATOR_PX', (6, 7))
    kit, *others = bench.operators(torch.device('cpu'))[name].values()
    mine = kit()
    for other in others:
        for one, same in zip(mine if name != 'NMS' else mine[1:], other() if name != 'NMS' else [other()], strict=True):
            torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-3)


def test_memory_is_that_of_one_pass():
    """64 MB, kept until the backward pass, are seen; what was there before is not."""
    there = torch.ones(8 << 20)

    def once(_objects):
        kept = torch.ones(16 << 20)
        del kept
    assert 60e6 < bench.peak_bytes(once) < 90e6
    assert len(there)
