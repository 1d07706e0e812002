"""The package: importing it is all that a Config's names need, and it looks at nothing above itself."""
import subprocess
import sys

from amdlib.files import ROOT

CODE = """
import sys
import amdlib.engine
from mmdet import registry
from mmengine.registry import init_default_scope
assert sys.modules['mmcv._ext'] is not None
init_default_scope('mmdet')
for kind, names in (('MODELS', 'Distiller'), ('METRICS', 'CocoNumbers'), ('HOOKS', 'WholeCheckpointHook ProgressHook'),
                    ('TRANSFORMS', 'SeedPicture'), ('OPTIM_WRAPPERS', 'BFloat16OptimWrapper')):
    for name in names.split():
        assert getattr(registry, kind).get(name) is not None, name
assert registry.HOOKS.get('SyncBuffersHook') is not None
print(*sorted({name.split('.')[1] for name in sys.modules if name.startswith('amdlib.')}))
"""


def test_importing_it_registers_what_configs_name_and_imports_nothing_from_above():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(done.stdout.split('\n')[-2].split())
    assert {'engine', 'mmcv_ext'} <= imported
    assert imported <= {'engine', 'evaluation', 'mmcv_ext', 'methods', 'weights', 'errors', 'files', 'words',
                        'terminal'}
