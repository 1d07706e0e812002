"""Write mmcv_ext.npz: what compiled mmcv's own operators answer to seeded inputs.

The C++ sources that mmcv-lite ships are compiled (nms, softnms, nms_match, roi_align, deform_conv and
modulated_deform_conv) and called through mmcv.ops. Operators that have CUDA sources only, and roi_align where its CPU
kernel refuses, are compiled for a CPU as well (mmcv_cuda.cpp; roi_pool and sigmoid_focal_loss are not among them, so
that these have no reference here). Inputs, options and answers go into one file, so that the test needs neither a
compiler nor the same random numbers.

Run by `make goldens`. Needs g++ with C++20, ninja, Python's headers and one to three minutes; the build stays in a
temporary folder. Everything in the project's environment is left as it is.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).with_name('mmcv_ext.npz')
OPERATORS = ('nms', 'softnms', 'roi_align_forward', 'roi_align_backward', 'deform_conv_forward',
             'deform_conv_backward_input', 'deform_conv_backward_parameters',
             'modulated_deform_conv_forward', 'modulated_deform_conv_backward', 'nms_match')
CUDA_OPERATORS = ('roi_align_forward', 'roi_align_backward', 'deform_roi_pool_forward', 'deform_roi_pool_backward',
                  'ms_deform_attn_forward', 'ms_deform_attn_backward', 'carafe_forward', 'carafe_backward',
                  'masked_im2col_forward', 'masked_col2im_forward')
CUDA = 'cuda_'      # how the names of cases begin whose answers are the CUDA kernels'
CUDA_HELPER = """#pragma once
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
using at::Half;
using at::Tensor;
using std::max;
using std::min;
static const struct { int x = 0, y = 0; } blockIdx, threadIdx;
static const struct { int x = 1, y = 1; } blockDim, gridDim;
inline void __syncthreads() {}
template <typename T> void atomicAdd(T *at, T value) { *at += value; }
#include "common_cuda_helper.hpp"
"""
SOURCES = ('nms', 'roi_align', 'deform_conv', 'modulated_deform_conv')


def evaluate(op: str, tensors: dict[str, torch.Tensor], options: dict) -> dict[str, torch.Tensor]:
    """Answers of mmcv.ops, on whichever back end is installed, to one case: outputs and gradients by name.

    Every tensor whose name starts with ``d_`` is differentiated (its gradient is ``grad_<name>``);
    ``grad`` is the gradient that arrives at the output.
    """
    from mmcv import ops
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
    tensors = {name: value.clone().requires_grad_(name.startswith('d_')) for name, value in tensors.items()}
    grad = tensors.pop('grad', None)
    if op in ('nms', 'soft_nms'):
        dets, inds = getattr(ops, op)(**tensors, **options)
        return {'dets': dets, 'inds': inds}
    if op == 'nms_match':
        groups = ops.nms_match(tensors['dets'], **options)
        return {'inds': torch.cat(groups), 'sizes': torch.tensor([len(group) for group in groups])}
    values = list(tensors.values())
    if op == 'masked_conv2d':       # has no gradient
        return {'output': ops.masked_conv2d(*values, options['padding']).detach()}
    if op == 'roi_align':
        output = ops.roi_align(*values, *options.values())
    elif op == 'deform_conv2d':
        output = ops.deform_conv2d(*values, options['stride'], options['padding'], options['dilation'],
                                   options['groups'], options['deform_groups'], False, options['im2col_step'])
    elif op == 'modulated_deform_conv2d':
        bias = tensors.get('d_bias')
        output = ops.modulated_deform_conv2d(*values[:4], bias, options['stride'], options['padding'],
                                             options['dilation'], options['groups'], options['deform_groups'])
    elif op == 'deform_roi_pool':
        output = ops.deform_roi_pool(*values[:2], tensors.get('d_offset'), *options.values())
    elif op == 'ms_deform_attn':
        output = MultiScaleDeformableAttnFunction.apply(*values, 64)
    elif op == 'carafe':
        output = ops.carafe(*values, *options.values())
    else:
        raise ValueError(f'no such operator: {op!r}')
    output.backward(grad)
    gradients = {f'grad_{name}': value.grad for name, value in tensors.items() if value.requires_grad}
    return {'output': output.detach(), **gradients}


def cases():
    """Yield (name, operator, tensors, options) of every case; seeded."""
    rng = torch.Generator().manual_seed(2301)

    def randn(*shape, dtype=torch.float32):
        # Multiples of 1/32 keep the file small, and put some of the samples on whole coordinates.
        return (torch.randn(*shape, generator=rng, dtype=torch.float64) * 32).round().to(dtype) / 32

    def boxes(count, integer):
        corner, size = torch.rand(2, count, 2, generator=rng) * 60
        xyxy = torch.cat([corner, corner + size], dim=1)
        return xyxy.round() if integer else (xyxy * 32).round() / 32 + 0.1

    for integer in (False, True):  # whole pixels give IoUs that equal the threshold
        for offset in (0, 1):
            xyxy = boxes(60, integer)
            scores = torch.randperm(60, generator=rng) / 60  # no ties: mmcv's nms sorts them unstably
            tied = (scores * 15).round() / 15
            kind = f"{'int' if integer else 'real'}_offset{offset}"
            for threshold in (0.3, 0.5, 0.6):
                yield (f'nms_{kind}_{threshold}', 'nms', {'boxes': xyxy, 'scores': scores},
                       {'iou_threshold': threshold, 'offset': offset})
            for method in ('naive', 'linear', 'gaussian'):
                yield (f'softnms_{kind}_{method}', 'soft_nms', {'boxes': xyxy, 'scores': tied},
                       {'iou_threshold': 0.3, 'sigma': 0.5, 'min_score': 0.05, 'method': method, 'offset': offset})
    # IoU of exactly 0.6 and 0.7: kept, since the comparison is strict and the threshold is rounded to float32.
    edge = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 6], [20, 0, 30, 10], [20, 0, 30, 7]])
    for threshold in (0.6, 0.7):
        yield (f'nms_edge_{threshold}', 'nms', {'boxes': edge, 'scores': torch.tensor([.9, .8, .7, .6])},
               {'iou_threshold': threshold, 'offset': 0})
    # Boxes without area: 0 / 0, which as a gaussian weight makes scores NaN.
    flat = torch.tensor([[3., 1, 3, 1], [4, 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [4, 3, 5, 3]])
    for method in ('naive', 'linear', 'gaussian'):
        yield (f'softnms_flat_{method}', 'soft_nms', {'boxes': flat, 'scores': torch.tensor([.3, .9, .8, .5, .4, .2])},
               {'iou_threshold': 0.3, 'sigma': 0.5, 'min_score': 0.05, 'method': method, 'offset': 0})

    for mode in ('avg', 'max'):
        for aligned in (True, False):
            for ratio in (0, 2):
                # inside, across the border, outside, tiny, of no size, larger than the map
                xyxy = torch.tensor([[3., 2, 29, 20], [-9, -6, 14, 9], [70, 70, 90, 95], [5, 5, 5.4, 5.3],
                                     [8, 8, 8, 8], [-20, -20, 80, 60], [1, 1, 31, 23]])
                rois = torch.cat([torch.tensor([0., 1, 0, 1, 0, 1, 1])[:, None], xyxy], dim=1)
                yield (f"roi_align_{mode}_{'aligned' if aligned else 'legacy'}_{ratio}", 'roi_align',
                       {'d_input': randn(2, 3, 6, 8), 'rois': rois, 'grad': randn(7, 3, 3, 2)},
                       {'output_size': (3, 2), 'spatial_scale': 0.25, 'sampling_ratio': ratio, 'pool_mode': mode,
                        'aligned': aligned})

    # name: channels in, out, height, width, kernel, stride, padding, dilation, groups, deform_groups
    plans = {
        'plain': (2, 3, 6, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
        'oblong': (4, 2, 8, 7, (3, 2), (2, 1), (2, 1), (1, 2), 1, 2),
        'grouped': (4, 4, 5, 6, (3, 3), (1, 2), (1, 2), (2, 1), 2, 2),
        'point': (4, 4, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
        'row': (4, 4, 1, 6, (1, 3), (1, 1), (0, 1), (1, 1), 2, 1),
    }
    for plan, (c_in, c_out, h, w, kernel, stride, padding, dilation, groups, deform_groups) in plans.items():
        out = [(size + 2 * p - d * (k - 1) - 1) // s + 1
               for size, p, d, k, s in zip((h, w), padding, dilation, kernel, stride, strict=False)]
        taps = deform_groups * kernel[0] * kernel[1]
        spreads = ('zero', 'whole', 'far') if plan in ('plain', 'grouped') else ('whole', 'far')
        for spread in spreads:  # zero and whole offsets put samples exactly on -1, 0 and the size
            for dtype in (torch.float32, torch.float64) if spread == 'far' else (torch.float32,):
                offset = randn(2, 2 * taps, *out, dtype=dtype)
                offset = {'zero': offset * 0, 'whole': (offset * 2).round(), 'far': offset * 3}[spread]
                options = {'stride': stride, 'padding': padding, 'dilation': dilation, 'groups': groups,
                           'deform_groups': deform_groups}
                tensors = {'d_input': randn(2, c_in, h, w, dtype=dtype), 'd_offset': offset}
                weight = randn(c_out, c_in // groups, *kernel, dtype=dtype)
                grad = randn(2, c_out, *out, dtype=dtype)
                name = f"{plan}_{spread}_{'float64' if dtype == torch.float64 else 'float32'}"
                yield (f'deform_{name}', 'deform_conv2d', {**tensors, 'd_weight': weight, 'grad': grad},
                       {**options, 'im2col_step': 1 if plan == 'grouped' else 2})
                mask = torch.sigmoid(randn(2, taps, *out, dtype=dtype)).mul(32).round() / 32
                bias = {} if spread == 'zero' else {'d_bias': randn(c_out, dtype=dtype)}
                yield (f'modulated_{name}', 'modulated_deform_conv2d',
                       {**tensors, 'd_mask': mask, 'd_weight': weight, **bias, 'grad': grad}, options)

    boxes_60 = boxes(60, integer=True)
    for name, threshold in (('many', 0.3), ('edge', 0.6)):      # an IoU of exactly the threshold suppresses
        dets = {'many': torch.cat([boxes_60, torch.randperm(60, generator=rng)[:, None] / 60], dim=1),
                'edge': torch.cat([edge, torch.tensor([[.9], [.8], [.7], [.6]])], dim=1)}[name]
        yield f'nms_match_{name}', 'nms_match', {'dets': dets}, {'iou_threshold': threshold}

    # Offsets of a finer level than the input's, as in DyHead.
    for size in ((6, 8), (5, 5)):
        yield (f'modulated_finer_{size[0]}', 'modulated_deform_conv2d',
               {'d_input': randn(2, 2, 3, 4), 'd_offset': randn(2, 18, *size) * 2,
                'd_mask': torch.sigmoid(randn(2, 9, *size)).mul(32).round() / 32, 'd_weight': randn(3, 2, 3, 3),
                'grad': randn(2, 3, 3, 4)},
               {'stride': 1, 'padding': 1, 'dilation': 1, 'groups': 1, 'deform_groups': 1})

    # x or y inverted, both, both by less than a bin, and upright
    xyxy = torch.tensor([[29., 2, 3, 20], [3, 20, 29, 2], [29, 20, 3, 2], [5.3, 5.4, 5, 5], [3, 2, 29, 20]])
    rois = torch.cat([torch.tensor([0., 1, 0, 1, 0])[:, None], xyxy], dim=1).double()
    for aligned in (True, False):
        for ratio in (0, 2):
            yield (f"{CUDA}roi_align_inverted_{'aligned' if aligned else 'legacy'}_{ratio}", 'roi_align',
                   {'d_input': randn(2, 3, 6, 8, dtype=torch.float64), 'rois': rois,
                    'grad': randn(5, 3, 3, 2, dtype=torch.float64)},
                   {'output_size': (3, 2), 'spatial_scale': 0.25, 'sampling_ratio': ratio, 'pool_mode': 'avg',
                    'aligned': aligned})

    xyxy = torch.tensor([[3., 2, 29, 20], [-9, -6, 14, 9], [70, 70, 90, 95], [8, 8, 8, 8], [29, 20, 3, 2]])
    rois = torch.cat([torch.tensor([0., 1, 0, 1, 0])[:, None], xyxy], dim=1).double()
    for ratio in (0, 2):
        for moved in (True, False):
            offset = {'d_offset': randn(5, 2, 3, 2, dtype=torch.float64)} if moved else {}
            yield (f"{CUDA}deform_roi_pool_{ratio}_{'moved' if moved else 'plain'}", 'deform_roi_pool',
                   {'d_input': randn(2, 3, 6, 8, dtype=torch.float64), 'rois': rois, **offset,
                    'grad': randn(5, 3, 3, 2, dtype=torch.float64)},
                   {'output_size': (3, 2), 'spatial_scale': 0.25, 'sampling_ratio': ratio, 'gamma': 0.5})

    shapes = torch.tensor([[4, 8], [2, 4], [1, 1]])     # powers of two: places below are exact
    starts = torch.tensor([0, 32, 40])
    for places in ('anywhere', 'whole'):    # whole: on pixels, on coordinate -1 and on the size, farther out
        where = torch.randint(-12, 28, (2, 5, 2, 3, 3, 2), generator=rng).double() / 16
        if places == 'anywhere':
            where = where + randn(2, 5, 2, 3, 3, 2, dtype=torch.float64) / 32
        yield (f'{CUDA}ms_deform_attn_{places}', 'ms_deform_attn',
               {'d_value': randn(2, 41, 2, 3, dtype=torch.float64), 'shapes': shapes, 'starts': starts,
                'd_places': where, 'd_weights': torch.rand(2, 5, 2, 3, 3, generator=rng).double(),
                'grad': randn(2, 5, 6, dtype=torch.float64)}, {})

    for kernel, groups, scale in ((3, 1, 2), (5, 2, 2), (1, 2, 3)):
        yield (f'{CUDA}carafe_{kernel}_{groups}_{scale}', 'carafe',
               {'d_features': randn(2, 4, 3, 4, dtype=torch.float64),
                'd_masks': randn(2, kernel ** 2 * groups, 3 * scale, 4 * scale, dtype=torch.float64),
                'grad': randn(2, 4, 3 * scale, 4 * scale, dtype=torch.float64)},
               {'kernel_size': kernel, 'group_size': groups, 'scale_factor': scale})

    for kernel, padding in (((3, 3), (1, 1)), ((1, 3), (0, 1)), ((1, 1), (0, 0))):
        yield (f'{CUDA}masked_conv_{kernel[0]}{kernel[1]}', 'masked_conv2d',
               {'features': randn(1, 3, 5, 6, dtype=torch.float64),
                'mask': torch.randint(0, 2, (1, 5, 6), generator=rng).double(),
                'weight': randn(2, 3, *kernel, dtype=torch.float64), 'bias': randn(2, dtype=torch.float64)},
               {'padding': padding})


def load_goldens(path: Path = GOLDENS):
    """{case: (operator, tensors, options, answers)} of a goldens file."""
    found = {}
    with np.load(path) as archive:
        for name, (op, options) in json.loads(str(archive['cases'])).items():
            parts = {'in': {}, 'out': {}}
            for key in archive.files:
                if key.startswith(name + '/'):
                    _, part, tensor = key.split('/')
                    parts[part][tensor] = torch.from_numpy(archive[key])
            found[name] = (op, parts['in'], options, parts['out'])
    return found


def compile_operators(build: Path):
    """mmcv's CPU operators as an extension module, built below ``build``."""
    import mmcv
    from torch.utils import cpp_extension
    csrc = Path(mmcv.__file__).parent / 'ops' / 'csrc'
    pybind = (csrc / 'pytorch' / 'pybind.cpp').read_text()
    wanted = '|'.join(OPERATORS)
    declared = re.findall(rf'^(?:void|Tensor|std::vector<std::vector<int>>) (?:{wanted})\([^;]*;', pybind, re.MULTILINE)
    defined = re.findall(rf'^  m\.def\("(?:{wanted})"[^;]*;', pybind, re.MULTILINE)
    assert len(declared) == len(defined) == len(OPERATORS), (len(declared), len(defined))
    binding = build / 'binding.cpp'
    binding.write_text('\n'.join(['#include <torch/extension.h>', '#include "pytorch_cpp_helper.hpp"', *declared,
                                  'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {', *defined, '}\n']))
    sources = [binding, *(csrc / 'pytorch' / folder / f'{name}.cpp' for name in SOURCES for folder in ('.', 'cpu'))]
    # The same base names occur twice, and ninja builds all objects in one folder: copies with distinct names.
    copies = [binding]
    for source in sources[1:]:
        copies.append(build / f'{source.parent.name}_{source.name}')
        copies[-1].write_text(source.read_text())
    return cpp_extension.load('mmcv_cpu_operators', [str(path) for path in copies], build_directory=str(build),
                              extra_include_paths=[str(csrc / 'common')], extra_cflags=['-O2', '-std=c++20'])


def compile_cuda_operators(build: Path):
    """mmcv's CUDA kernels as an extension module for the CPU, built below ``build``."""
    import mmcv
    from torch.utils import cpp_extension
    build = build / 'cuda'
    build.mkdir(exist_ok=True)
    (build / 'pytorch_cuda_helper.hpp').write_text(CUDA_HELPER)
    (build / 'cuda.h').write_text('')
    csrc = Path(mmcv.__file__).parent / 'ops' / 'csrc'
    pybind = (csrc / 'pytorch' / 'pybind.cpp').read_text()
    defined = re.findall(rf'^  m\.def\("(?:{"|".join(CUDA_OPERATORS)})"[^;]*;', pybind, re.MULTILINE)
    assert len(defined) == len(CUDA_OPERATORS)
    source = build / 'operators.cpp'
    source.write_text('\n'.join([Path(__file__).with_name('mmcv_cuda.cpp').read_text(),
                                 'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {', *defined, '}\n']))
    return cpp_extension.load('mmcv_cuda_operators', [str(source)], build_directory=str(build),
                              extra_include_paths=[str(build), str(csrc / 'common' / 'cuda'), str(csrc / 'common')],
                              extra_cflags=['-O2', '-std=c++20'])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=GOLDENS)
    parser.add_argument('--build', type=Path, help='keep the build in this folder')
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    with tempfile.TemporaryDirectory() as scratch:
        build = args.build or Path(scratch)
        build.mkdir(parents=True, exist_ok=True)
        compiled, cuda = compile_operators(build), compile_cuda_operators(build)
        module = types.ModuleType('mmcv._ext')
        # mmcv.ops asks for every operator by name when it is imported; the others are never called here.
        module.__getattr__ = lambda name: None
        sys.modules['mmcv._ext'] = module
        arrays, listing = {}, {}
        for name, op, tensors, options in cases():
            listing[name] = (op, options)
            of_cuda = {each: getattr(cuda, each) for each in CUDA_OPERATORS}
            of_cpu = {each: getattr(compiled, each) for each in OPERATORS}
            module.__dict__.update({**of_cpu, **of_cuda} if name.startswith(CUDA) else {**of_cuda, **of_cpu})
            for part, values in (('in', tensors), ('out', evaluate(op, tensors, options))):
                arrays.update({f'{name}/{part}/{key}': value.numpy() for key, value in values.items()})
    np.savez_compressed(args.output, cases=np.array(json.dumps(listing)), **arrays)
    print(f'{args.output}: {len(listing)} cases, {args.output.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
