"""3-D convolutions with wide kernels and few channels, as in STOP's released code; torch's own are slow there.

Shapes: B clips, T frames, C channels, planes of H rows and W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.precision import compute_dtype
from modules.stop.tokens import at_least_fp32


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Convolve the volume (T,H,W), zero beyond its borders: `[B,T,C,H,W]` -> `[B,T,C',H,W]`.

    Of the two ways below, this takes the faster one for the release's 11x11 kernels of 3 to 16 channels
    (docs/performance.md).
    """
    in_frequency = x.device.type == "cpu" and compute_dtype(x).itemsize >= 4
    return convolve_in_frequency(conv, x) if in_frequency else convolve_over_time(conv, x)


def convolve_over_time(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Convolve as `convolve`, with the taps in time side by side as channels of one 2-D convolution.

    With so few channels and so large a kernel, torch's 3-D convolution is several times slower backward.
    """
    taps, *plane = conv.kernel_size
    frames = x.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, 0, taps // 2, taps // 2))
    x = torch.cat([x[:, tap : tap + frames] for tap in range(taps)], dim=2).flatten(0, 1)
    kernel = conv.weight.transpose(1, 2).flatten(1, 2)  # [C',taps*C,h,w]
    x = F.conv2d(x, kernel, conv.bias, padding=[size // 2 for size in plane])
    return x.unflatten(0, (-1, frames))


def convolve_in_frequency(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Convolve as `convolve`, by multiplying the Fourier transforms of planes and kernels, in fp32 or wider.

    With wide kernels and few channels a direct convolution is slow: on a CPU, from nine channels to one, 40 times
    slower backward. Each frequency is a small matrix product, of the taps' channels with the kernel's.
    """
    taps, *kernel = conv.kernel_size
    frames, plane = x.shape[1], x.shape[-2:]
    size = [fast_length(n + k - 1) for n, k in zip(plane, kernel, strict=True)]
    x = F.pad(at_least_fp32(x), (kernel[1] // 2, 0, kernel[0] // 2, 0))
    x = F.pad(torch.fft.rfft2(x, s=size), (0, 0, 0, 0, 0, 0, taps // 2, taps // 2))
    x = torch.cat([x[:, tap : tap + frames] for tap in range(taps)], dim=2)  # [B,T,taps*C,h,w]
    weight = torch.fft.rfft2(at_least_fp32(conv.weight), s=size).conj().transpose(1, 2)
    by_frequency = torch.bmm(
        x.flatten(3).flatten(0, 1).permute(2, 0, 1), weight.flatten(3).flatten(1, 2).permute(2, 1, 0)
    )
    y = by_frequency.permute(1, 2, 0).unflatten(2, x.shape[-2:])
    y = torch.fft.irfft2(y, s=size)[..., : plane[0], : plane[1]].unflatten(0, (-1, frames))
    assert conv.bias is not None
    return y + conv.bias[:, None, None]


def fast_length(n: int) -> int:
    """Return the least number from n on without prime factors above 5; Fourier transforms of that length are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
