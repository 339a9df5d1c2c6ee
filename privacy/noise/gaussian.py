"""Gaussian noise that survives the floating-point attack.

The textbook attack (Mironov 2012; Jin et al. 2022) notes which float64 values the sampler can or cannot
reach and rules out inputs. Two defences, each from the literature:

1. Each value is the sum of two independent Box-Muller draws over sqrt(2) (Holohan and Braghin 2021,
   "Secure random sampling in differential privacy", section 4). Inverting the generator then needs a search
   over the 106 free bits of the second pair of uniforms, even for whoever sees both values of a pair.
2. ``add_gaussian_`` adds in float64 and rounds the *noised* value to a fixed grid, a power of two between
   2^-21 and 2^-20 of the standard deviation. The set of values that can come out is then the same for every
   input, and float64's 2^-53 resolution stands 2^-32 below the grid. Rounding is post-processing; it costs
   nothing in privacy and 1e-13 of the variance.

Each draw's tail ends at 8.6 standard deviations (probability 2^-53), the sum's at 12.2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from privacy.noise.source import SYSTEM, NoiseSource
from umbel.errors import PrivacyError

_TILE = 1 << 15
"""Pairs of values at a time: the temporaries stay in the second-level cache."""


def normal(count: int, source: NoiseSource = SYSTEM) -> npt.NDArray[np.float64]:
    """``count`` independent standard normal float64 values; 0 gives an empty array."""
    out = np.empty(count + count % 2, dtype=np.float64)
    for start in range(0, len(out), 2 * _TILE):
        _tile(out[start : start + 2 * _TILE], source)
    return out[:count]


def _tile(out: npt.NDArray[np.float64], source: NoiseSource) -> None:
    half = len(out) // 2
    uniform = torch.from_numpy(source.uniform(4 * half))
    # r^2 = -2 log u has variance 2 a component pair; halved, because two draws are summed.
    radius = uniform[: 2 * half].log_().neg_().sqrt_()
    angle = uniform[2 * half :].mul_(2 * math.pi)
    cosine, sine = torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)
    target = torch.from_numpy(out)
    torch.add(cosine[:half], cosine[half:], out=target[:half])
    torch.add(sine[:half], sine[half:], out=target[half:])


def gaussian_(
    out: npt.NDArray[np.float32] | torch.Tensor, std: float, source: NoiseSource = SYSTEM
) -> npt.NDArray[np.float32] | torch.Tensor:
    """Overwrites ``out`` with N(0, std^2) noise and returns it.

    To noise a sum use :func:`add_gaussian_`: adding float32 noise to float32 data afterwards loses the
    second defence above.

    Args:
        out: float32, contiguous, any shape, on the CPU (a tensor elsewhere is filled by copying).
        std: standard deviation, finite and not negative; 0 fills zeros.
        source: where randomness comes from.

    Raises:
        PrivacyError: wrong dtype or layout, or a standard deviation that is negative, infinite or NaN.
    """
    flat = _flat(out)
    _check(std)
    flat[:] = 0
    return _noise(out, flat, std, source)


def add_gaussian_(
    vector: npt.NDArray[np.float32] | torch.Tensor, std: float, source: NoiseSource = SYSTEM
) -> npt.NDArray[np.float32] | torch.Tensor:
    """Adds N(0, std^2) noise to ``vector`` in place, on the grid described above, and returns it.

    Guarantee: the Gaussian mechanism (Dwork and Roth 2014, appendix A) when ``std`` is the noise multiplier
    times the sensitivity of ``vector`` under the plan's relation: pass ``plan.noise_std()``.

    | std | effect |
    |---|---|
    | 0 | nothing is added, no protection |
    | inf, NaN, negative | PrivacyError |
    | empty vector | returned as it is |

    Raises:
        PrivacyError: as above, or a value of ``vector`` that is not finite: noise would not hide it.
    """
    flat = _flat(vector)
    _check(std)
    if not bool(np.isfinite(flat).all()):
        raise PrivacyError(
            "A vector to be noised holds a value that is not finite: clip it with a clipper of umbel, "
            "which refuses such updates."
        )
    return _noise(vector, flat, std, source)


def _noise(
    original: npt.NDArray[np.float32] | torch.Tensor,
    flat: npt.NDArray[np.float32],
    std: float,
    source: NoiseSource,
) -> npt.NDArray[np.float32] | torch.Tensor:
    if std > 0 and flat.size:
        grid = grid_step(std)
        for start in range(0, flat.size, 2 * _TILE):
            part = flat[start : start + 2 * _TILE]
            part[:] = on_grid(normal(part.size, source) * std + part, grid)
    if isinstance(original, torch.Tensor) and original.device.type != "cpu":
        original.copy_(torch.from_numpy(flat).view(original.shape))
    return original


def grid_step(std: float) -> float:
    """The grid for noise of standard deviation ``std`` > 0: 2^(floor(log2 std) - 20)."""
    return 2.0 ** (math.floor(math.log2(std)) - 20)


def on_grid(values: npt.NDArray[np.float64], grid: float) -> npt.NDArray[np.float64]:
    """Rounds float64 ``values`` in place to multiples of ``grid``, ties to even."""
    values *= 1 / grid
    np.rint(values, out=values)
    values *= grid
    return values


def _flat(vector: npt.NDArray[np.float32] | torch.Tensor) -> npt.NDArray[np.float32]:
    if isinstance(vector, torch.Tensor):
        if vector.dtype != torch.float32 or not vector.is_contiguous():
            raise PrivacyError(
                f"A tensor to be noised is {vector.dtype}, expected contiguous float32: convert it before clipping."
            )
        array: npt.NDArray[np.float32] = vector.detach().cpu().numpy().reshape(-1)
        return array
    if vector.dtype != np.float32 or not vector.flags.c_contiguous:
        raise PrivacyError(
            f"An array to be noised is {vector.dtype}, expected contiguous float32: convert it before clipping."
        )
    return vector.reshape(-1)


def _check(std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(
            f"A noise standard deviation is {std}, expected a finite number of at least 0: use plan.noise_std()."
        )
