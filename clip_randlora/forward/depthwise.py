"""Depthwise convolution with a backward pass that is fast on CPUs in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def depthwise_conv(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> Tensor:
    """Convolve each channel with its own kernel, as ``conv2d`` with C groups does.

    oneDNN has no fast backward pass for strided depthwise convolutions in bfloat16: for an input
    of (32, 144, 43, 43) it takes 39 ms on two Zen 4 cores, and 3 ms in float32. So forward
    convolutions compute the gradient of the images there.

    Args:
        images: float ``(N, C, H, W)``.
        weight: float ``(C, 1, K, K)``.
        bias: float ``(C,)`` or None.
        stride: down and right.
        padding: zeros at the left, right, top and bottom, in `torch.nn.functional.pad`'s order.

    Returns:
        ``(N, C, H', W')``, in the images' dtype or autocast's.
    """
    if torch.is_autocast_enabled(images.device.type):
        dtype = torch.get_autocast_dtype(images.device.type)
        images, weight = images.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    is_slow = images.dtype == torch.bfloat16 and images.device.type == "cpu" and max(stride) > 1
    is_frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    if is_slow and is_frozen and images.requires_grad and torch.is_grad_enabled():
        return _StridedDepthwise.apply(images, weight, bias, stride, padding)
    return _convolve(images, weight, bias, stride, padding)


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise convolution with frozen weights: only the images get a gradient."""

    @staticmethod
    def forward(ctx, images, weight, bias, stride, padding) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.size, ctx.start = stride, images.shape[2:], (padding[2], padding[0])
        return _convolve(images, weight, bias, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        (weight,) = ctx.saved_tensors
        images = _image_gradient(grad, weight, ctx.stride, ctx.size, ctx.start)
        return images, None, None, None, None


def _convolve(images, weight, bias, stride, padding) -> Tensor:
    """Convolve; if the padding is asymmetric, pad the kernel with zeros instead of the images.

    A padded copy of the images takes longer than the convolution.
    """
    left, right, top, bottom = padding
    taps = [max(right - left, 0), max(left - right, 0), max(bottom - top, 0), max(top - bottom, 0)]
    weight = F.pad(weight, taps) if any(taps) else weight
    both = max(top, bottom), max(left, right)
    return F.conv2d(images, weight, bias, stride, both, groups=images.shape[1])


def _image_gradient(
    grad: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    size: tuple[int, int],
    start: tuple[int, int],
) -> Tensor:
    """Return the gradient of the images, (N, C, H, W).

    Pixels whose rows and columns have the same remainders modulo the stride meet the same taps of
    the kernel. The gradient on each such grid is a convolution of ``grad`` with these taps,
    without a stride.

    Args:
        grad: gradient of the result, (N, C, H', W').
        weight: (C, 1, K, K).
        stride: down and right.
        size: H and W.
        start: zeros above and to the left of the images.
    """
    result = torch.empty(
        (*grad.shape[:2], *size), dtype=grad.dtype, memory_format=torch.channels_last
    )
    for top in range(min(stride[0], size[0])):
        for left in range(min(stride[1], size[1])):
            grid = result[:, :, top :: stride[0], left :: stride[1]]
            down, first_down = divmod(top + start[0], stride[0])[::-1]
            right, first_right = divmod(left + start[1], stride[1])[::-1]
            taps = weight[:, :, down :: stride[0], right :: stride[1]].flip(2, 3)
            if not taps.numel():  # a stride larger than the kernel skips these pixels
                grid.zero_()
                continue
            rows, columns = taps.shape[2:]
            part = F.conv2d(grad, taps, padding=(rows - 1, columns - 1), groups=grad.shape[1])
            part = part[:, :, first_down:, first_right:]
            missing = grid.shape[3] - part.shape[3], grid.shape[2] - part.shape[2]
            grid.copy_(F.pad(part, (0, missing[0], 0, missing[1])) if any(missing) else part)
    return result
