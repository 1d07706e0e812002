// mmcv's CUDA kernels, compiled for a CPU: one thread does all of a kernel's loop. Argument order is that of mmcv's
// pybind.cpp. `pytorch_cuda_helper.hpp` and `cuda.h` are the two headers below, which make_mmcv_ext.py puts first.
#include <torch/extension.h>

#include "carafe_naive_cuda_kernel.cuh"
#include "deform_roi_pool_cuda_kernel.cuh"
#include "masked_conv2d_cuda_kernel.cuh"
#include "ms_deform_attn_cuda_kernel.cuh"
#include "roi_align_cuda_kernel.cuh"

#define FOR(tensor, ...) AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "kernel", [&] { __VA_ARGS__; });
#define OF(tensor) tensor.data_ptr<scalar_t>()
#define WHOLE(tensor) tensor.data_ptr<int64_t>()

void roi_align_forward(Tensor input, Tensor rois, Tensor output, Tensor argmax_y, Tensor argmax_x, int bins_y,
                       int bins_x, double scale, int ratio, int mode, bool aligned) {
  FOR(input, roi_align_forward_cuda_kernel<scalar_t>(
      output.numel(), OF(input), OF(rois), OF(output), OF(argmax_y), OF(argmax_x), bins_y, bins_x, scale, ratio, mode,
      aligned, input.size(1), input.size(2), input.size(3)))
}

void roi_align_backward(Tensor grad, Tensor rois, Tensor argmax_y, Tensor argmax_x, Tensor grad_input, int bins_y,
                        int bins_x, double scale, int ratio, int mode, bool aligned) {
  FOR(grad, roi_align_backward_cuda_kernel<scalar_t>(
      grad.numel(), OF(grad), OF(rois), OF(argmax_y), OF(argmax_x), OF(grad_input), bins_y, bins_x, scale, ratio, mode,
      aligned, grad_input.size(1), grad_input.size(2), grad_input.size(3)))
}

void deform_roi_pool_forward(Tensor input, Tensor rois, Tensor offset, Tensor output, int bins_y, int bins_x,
                             double scale, int ratio, double gamma) {
  FOR(input, deform_roi_pool_forward_cuda_kernel<scalar_t>(
      output.numel(), OF(input), OF(rois), offset.numel() ? OF(offset) : nullptr, OF(output), bins_y, bins_x, scale,
      ratio, gamma, input.size(1), input.size(2), input.size(3)))
}

void deform_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor offset, Tensor grad_input,
                              Tensor grad_offset, int bins_y, int bins_x, double scale, int ratio, double gamma) {
  FOR(grad, deform_roi_pool_backward_cuda_kernel<scalar_t>(
      grad.numel(), OF(grad), OF(input), OF(rois), offset.numel() ? OF(offset) : nullptr, OF(grad_input),
      OF(grad_offset), bins_y, bins_x, scale, ratio, gamma, input.size(1), input.size(2), input.size(3)))
}

Tensor ms_deform_attn_forward(Tensor value, Tensor shapes, Tensor starts, Tensor places, Tensor weights, int step) {
  Tensor output = at::zeros({value.size(0), places.size(1), value.size(2) * value.size(3)}, value.options());
  FOR(value, ms_deformable_im2col_gpu_kernel<scalar_t>(
      output.numel(), OF(value), WHOLE(shapes), WHOLE(starts), OF(places), OF(weights), value.size(0), value.size(1),
      value.size(2), value.size(3), shapes.size(0), places.size(1), places.size(4), OF(output)))
  return output;
}

void ms_deform_attn_backward(Tensor value, Tensor shapes, Tensor starts, Tensor places, Tensor weights, Tensor grad,
                             Tensor grad_value, Tensor grad_places, Tensor grad_weights, int step) {
  FOR(value, ms_deformable_col2im_gpu_kernel_gm<scalar_t>(
      grad.numel(), OF(grad), OF(value), WHOLE(shapes), WHOLE(starts), OF(places), OF(weights), value.size(0),
      value.size(1), value.size(2), value.size(3), shapes.size(0), places.size(1), places.size(4), OF(grad_value),
      OF(grad_places), OF(grad_weights)))
}

// mmcv's fast kernels need warps; the naive ones compute the same.
void carafe_forward(Tensor features, Tensor masks, Tensor rfeatures, Tensor routput, Tensor rmasks, Tensor output,
                    int kernel, int groups, int scale) {
  rfeatures.copy_(features);
  FOR(features, carafe_naive_forward_cuda_kernel<scalar_t>(
      output.numel(), OF(features), OF(masks), OF(output), kernel, groups, scale, output.size(1), output.size(2),
      output.size(3)))
}

void carafe_backward(Tensor grad, Tensor features, Tensor masks, Tensor, Tensor, Tensor, Tensor, Tensor grad_features,
                     Tensor grad_masks, int kernel, int groups, int scale) {
  FOR(grad, carafe_naive_backward_cuda_kernel<scalar_t>(
      grad.numel(), OF(grad), OF(features), OF(masks), OF(grad_features), OF(grad_masks), kernel, groups, scale,
      grad.size(1), grad.size(2), grad.size(3)))
}

void masked_im2col_forward(Tensor im, Tensor rows, Tensor columns, Tensor col, int kernel_h, int kernel_w, int pad_h,
                           int pad_w) {
  FOR(im, MaskedIm2colForward<scalar_t>(
      im.size(1) * rows.numel(), OF(im), im.size(2), im.size(3), kernel_h, kernel_w, pad_h, pad_w, WHOLE(rows),
      WHOLE(columns), rows.numel(), OF(col)))
}

void masked_col2im_forward(Tensor col, Tensor rows, Tensor columns, Tensor im, int height, int width, int channels) {
  FOR(im, MaskedCol2imForward<scalar_t>(
      channels * rows.numel(), OF(col), height, width, channels, WHOLE(rows), WHOLE(columns), rows.numel(), OF(im)))
}
