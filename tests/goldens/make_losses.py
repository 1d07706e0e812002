"""Make losses.npz: values and gradients of the public FGD, MGD and FBKD (FKD) code, in float64 on the CPU.

    python tests/goldens/make_losses.py FOLDER [OUTPUT]

FOLDER holds the public files listed in SOURCES under the names given there; their SHA-256 is checked. None of that code
is part of this project. mmcv's NonLocal2d, which FBKD builds on, comes from the installed mmcv.

The archive holds, for each case: f_s, f_t, param/<public name> and buffer/<public name> (float16, which is exact: the
inputs are rounded to it first), boxes/<image> (float32), image_shapes, and the results in float64: loss, grad_f_s,
grad/<public name>. `about` holds arguments and provenance as JSON.

Two things are set for the public code, neither changes what it computes: FGD runs with float64 as torch's default
dtype, because it takes 1 / area from integers and so in the default dtype; and `constant_init` and `kaiming_init`,
which newer mmcv has no more, come from mmengine.
"""
import argparse
import hashlib
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import torch

SOURCES = {
    'fgd.py': dict(repository='yzd-v/FGD', path='mmdet/distillation/losses/fgd.py',
                   commit='f1da292cf2e3d1de96259abda628d2e37ada2928',
                   sha256='769e7577d1fb2aedb52cf328fa95121a00c70af7fca0b65c8cfe3ff6363a35f8'),
    'mgd.py': dict(repository='yzd-v/MGD', path='det/mmdet/distillation/losses/mgd.py',
                   commit='454e609be857da44478876c5a43d45b78da2bc57',
                   sha256='7cfa32706443f78086338d9982fc9e4aabcde6875ba8405e099ae9e8b7182794'),
    'base_connector.py': dict(repository='open-mmlab/mmrazor',
                              path='mmrazor/models/architectures/connectors/base_connector.py',
                              commit='1c2ca44745e1db9d70bd94c0f90b753a46e38221',
                              sha256='5407bfc73364efdd7ccefc3213f066adb297662dd7df401bfdca9c678552b4f7'),
    'fbkd_connector.py': dict(repository='open-mmlab/mmrazor',
                              path='mmrazor/models/architectures/connectors/fbkd_connector.py',
                              commit='1c2ca44745e1db9d70bd94c0f90b753a46e38221',
                              sha256='63ff963e3e6f76a7116ca6f63a598a0249aefb083336d6af59cc2e2ee06d7271'),
    'fbkd_loss.py': dict(repository='open-mmlab/mmrazor', path='mmrazor/models/losses/fbkd_loss.py',
                         commit='1c0da58daec417b42a4b5b57b59073fac3026589',
                         sha256='9a11bb3d75e4912ddf4a0089657ea2d5dc7fb985104c3db72ff1014aa7a722b3'),
}

IMAGE_SHAPES = [(427, 640), (600, 391)]
# Out of the image to each side and wholly outside, a point, a line, reversed corners, the whole image, on cell borders.
ODD_BOXES = [(-40, 50, 60, 120), (300, -30, 380, 60), (350, 500, 480, 700), (-200, -150, -90, -100),
             (500, 100, 600, 180), (100, 100, 100, 100), (20, 300, 250, 300), (220, 260, 180, 200),
             (0, 0, 391, 600), (39.1, 60, 78.2, 120)]


class _Registry:
    def register_module(self):
        return lambda cls: cls


def load_public(folder):
    """The public classes by name: FGD, MGD, FBKDLoss, FBKDStudentConnector, FBKDTeacherConnector."""
    for name, source in SOURCES.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != source['sha256']:
            raise SystemExit(f'{name}: SHA-256 {found}, expected {source["sha256"]} '
                             f'({source["repository"]} {source["path"]} at {source["commit"]})')
    import mmcv.cnn
    import mmengine.model
    mmcv.cnn.constant_init = mmengine.model.constant_init
    mmcv.cnn.kaiming_init = mmengine.model.kaiming_init
    registry = _Registry()
    for name, content in (('public', {}), ('public.builder', dict(DISTILL_LOSSES=registry)), ('public.code', {}),
                          ('mmrazor', {}), ('mmrazor.registry', dict(MODELS=registry))):
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        sys.modules[name] = module
    loaded = {}
    for name in SOURCES:
        full_name = f'public.code.{name.removesuffix(".py")}'
        spec = importlib.util.spec_from_file_location(full_name, folder / name)
        loaded[name] = sys.modules[full_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    return types.SimpleNamespace(
        FGD=loaded['fgd.py'].FeatureLoss, MGD=loaded['mgd.py'].FeatureLoss, FBKDLoss=loaded['fbkd_loss.py'].FBKDLoss,
        FBKDStudentConnector=loaded['fbkd_connector.py'].FBKDStudentConnector,
        FBKDTeacherConnector=loaded['fbkd_connector.py'].FBKDTeacherConnector)


class FBKD(torch.nn.Module):
    """The public loss with its two connectors, as mmrazor's config wires them for one level."""

    def __init__(self, public, channels, reduction, maxpool_stride):
        super().__init__()
        settings = dict(in_channels=channels, reduction=reduction, mode='dot_product', sub_sample=True,
                        maxpool_stride=maxpool_stride)
        self.student = public.FBKDStudentConnector(**settings)
        self.teacher = public.FBKDTeacherConnector(**settings)
        self.loss = public.FBKDLoss()

    def forward(self, f_s, f_t):
        return self.loss(self.student(f_s), self.teacher(f_t))


def exact_in_float16(tensor):
    return tensor.half().double()


def random_boxes(n, image_shape, generator):
    """n boxes of all sizes inside an image, xyxy in pixels, float32: (n, 4)."""
    height, width = image_shape
    sizes = torch.tensor([width, height], dtype=torch.float32)
    corners = torch.rand((n, 2), generator=generator) * sizes
    extents = torch.rand((n, 2), generator=generator) ** 2 * sizes * 0.6
    return torch.cat([corners, torch.minimum(corners + extents, sizes)], dim=1)


def run(case, module, arguments, f_s, f_t, call, arrays, about, image_boxes=None):
    """Randomise the module's parameters, call it, and note inputs, value and gradients under the case's name."""
    generator = torch.Generator().manual_seed(len(about['cases']))
    module.double().train()
    for name, tensor in list(module.named_parameters()) + list(module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        noise = 0.4 * torch.randn(tensor.shape, generator=generator, dtype=torch.float32).double()
        around_one = name.endswith('running_var') or (tensor.dim() != 4 and 'weight' in name and 'wise' not in name)
        tensor.data.copy_(exact_in_float16(noise.abs() + 0.5 if around_one else noise))
        kind = 'buffer' if name in dict(module.named_buffers()) else 'param'
        arrays[f'{case}/{kind}/{name}'] = tensor.detach().numpy().astype(np.float16)
    f_s = f_s.clone().requires_grad_()
    loss = call(f_s, f_t)
    loss.backward()
    arrays[f'{case}/f_s'] = f_s.detach().numpy().astype(np.float16)
    arrays[f'{case}/f_t'] = f_t.numpy().astype(np.float16)
    arrays[f'{case}/loss'] = loss.detach().numpy()
    arrays[f'{case}/grad_f_s'] = f_s.grad.numpy()
    for name, parameter in module.named_parameters():
        arrays[f'{case}/grad/{name}'] = parameter.grad.numpy()
    for i, boxes in enumerate(image_boxes or []):
        arrays[f'{case}/boxes/{i}'] = boxes.numpy()
    about['cases'][case] = dict(arguments, loss=loss.item())


def features(n, c_s, c, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(exact_in_float16(torch.randn((n, channels, h, w), generator=generator, dtype=torch.float32))
                 for channels in (c_s, c))


def main(folder, output):
    public = load_public(folder)
    arrays, about = {}, dict(sources=SOURCES, image_shapes=IMAGE_SHAPES, cases={})

    generator = torch.Generator().manual_seed(11)
    shape_a, shape_b = IMAGE_SHAPES
    box_sets = {
        'fgd_80_boxes': [random_boxes(80, shape_a, generator), random_boxes(37, shape_b, generator)],
        'fgd_no_boxes': [torch.zeros(0, 4), random_boxes(3, shape_b, generator)],
        'fgd_odd_boxes': [random_boxes(2, shape_a, generator), torch.tensor(ODD_BOXES[:8] + ODD_BOXES[9:])],
        'fgd_no_background': [torch.zeros(0, 4), torch.tensor(ODD_BOXES)],
    }
    metas = [dict(img_shape=shape) for shape in IMAGE_SHAPES]
    torch.set_default_dtype(torch.float64)
    for seed, (case, image_boxes) in enumerate(box_sets.items()):
        c_s, c = (5, 6) if seed < 3 else (6, 6)
        weights = dict(temp=0.5, alpha_fgd=1e-3, beta_fgd=5e-4, gamma_fgd=1e-3, lambda_fgd=5e-6)
        module = public.FGD(c_s, c, case, **weights)
        f_s, f_t = features(2, c_s, c, 13, 20, seed)
        run(case, module, dict(student_channels=c_s, teacher_channels=c, **weights), f_s, f_t,
            lambda s, t, module=module, boxes=image_boxes: module(s, t, boxes, metas), arrays, about, image_boxes)
    torch.set_default_dtype(torch.float32)

    for case, c_s, ratio in (('mgd_align', 4, 0.65), ('mgd_identity', 6, 0.45)):
        module = public.MGD(c_s, 6, case, alpha_mgd=2e-5, lambda_mgd=ratio)
        f_s, f_t = features(2, c_s, 6, 9, 12, c_s)

        def call(s, t, module=module):
            torch.manual_seed(5)
            return module(s, t)
        run(case, module, dict(student_channels=c_s, teacher_channels=6, alpha_mgd=2e-5, lambda_mgd=ratio, seed=5),
            f_s, f_t, call, arrays, about)

    for case, reduction, stride, (h, w) in (('fbkd', 2, 2, (9, 13)), ('fbkd_coarse', 4, 4, (17, 10))):
        module = FBKD(public, 8, reduction, stride)
        f_s, f_t = features(2, 8, 8, h, w, stride)
        run(case, module, dict(channels=8, reduction=reduction, maxpool_stride=stride), f_s, f_t, module, arrays, about)

    about['torch'] = torch.__version__
    arrays['about'] = np.array(json.dumps(about, indent=1))
    np.savez_compressed(output, **arrays)
    print(f'{output}: {output.stat().st_size} bytes')
    for case, facts in about['cases'].items():
        print(f'{case:20} {facts["loss"]:.17g}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=pathlib.Path, help='the public files, named as in SOURCES')
    parser.add_argument('output', type=pathlib.Path, nargs='?', default=pathlib.Path(__file__).with_name('losses.npz'))
    arguments = parser.parse_args()
    main(arguments.folder, arguments.output)
