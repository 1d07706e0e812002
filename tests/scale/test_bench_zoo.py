"""bench_zoo.py: a line a method, with what it needs of the teacher; bytes as they are allocated."""
from dataclasses import replace

import pytest
import torch

from amdlib.engine.distiller import Distiller
from amdlib.files import read_json
from amdlib.paper.tables import find_table
from amdlib.scale import bench_zoo
from amdlib.scale.bench import ratio


def test_the_most_that_is_there_at_once_is_counted():
    before, n = torch.ones(1000), 4000

    def step():
        a = before + 1              # 4 kB
        b = torch.cat([a, a])       # 8 kB beside it
        del a
        c = b * 2                   # 8 kB beside b
        del b, c
        return torch.zeros(500)     # 2 kB, alone
    step()
    assert bench_zoo.peak_bytes(step) == pytest.approx(4 * n, abs=n / 10)


def test_held_are_weights_of_both_sides_and_what_the_optimizer_remembers():
    model = torch.nn.Linear(3, 2)
    object.__setattr__(model, 'teacher', torch.nn.Linear(5, 1))
    wrapper = type('Wrapper', (), {'optimizer': torch.optim.AdamW(model.parameters())})
    assert bench_zoo.held_bytes(model, wrapper) == 4 * (8 + 6)
    model(torch.ones(1, 3)).sum().backward()
    wrapper.optimizer.step()
    assert bench_zoo.held_bytes(model, wrapper) == 4 * (8 + 6 + 2 * 8 + 2)      # two moments, a step number each


def test_lines_of_the_page(store, monkeypatch):
    monkeypatch.setattr(bench_zoo, 'find_table', lambda name: replace(
        find_table(name), lines=('teacher', 'baseline', 'inherit', 'pkd', 'kd')))
    passes = []
    monkeypatch.setattr(Distiller, 'teacher_features', lambda self, *given, true=Distiller.teacher_features:
                        passes.append(self.method) or true(self, *given))
    page = bench_zoo.bench_zoo(store, ['retinanet'], rounds=1)
    lines = {line['method']: line for line in read_json(page.with_suffix('.json'))['groups']['retinanet']}
    assert list(lines) == ['baseline', 'PKD', 'KD']
    assert lines['baseline']['step'] == ratio(torch.ones(1).numpy(), torch.ones(1).numpy())
    assert [line['kept'] is None for line in lines.values()] == [True, False, True]
    assert set(passes) == {'pkd'}       # KD passes the whole teacher
    steps = 1 + 1 + 2 + 1           # the first, its bytes, two rounds, the features that are then kept
    images = store.profile.batch_size if store.profile.keep_features else 1
    assert len(passes) == steps * images
    assert all(line['memory'] > 1 for name, line in lines.items() if name != 'baseline')
    text = page.read_text()
    assert '| baseline | 1.00 [1.00, 1.00]' in text
    assert 'load of the machine' in text
