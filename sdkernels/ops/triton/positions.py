"""How kernels that sum over positions walk over them: with one stride where one is enough."""

import triton
import triton.language as tl
from torch import Tensor

from sdkernels.ops.layout import by_units


def along_positions(x: Tensor, unit_dim: int) -> Tensor:
    """x [N, ...] as [N, A, C, B] of the same positions, with A = 1 if one stride counts them; no copy."""
    view = by_units(x, unit_dim)
    N, A, C, B = view.shape
    if A > 1 and B == 1:
        return view.transpose(1, 3)
    if A > 1 and view.stride(1) == B * view.stride(3):
        return view.as_strided((N, 1, C, A * B), (view.stride(0), 0, view.stride(2), view.stride(3)))
    return view


def tile_shape(units: int, positions: int, units_first: bool, tile: int) -> tuple[int, int, int]:
    """Examples, units and positions of a tile of ``tile`` elements: first what is contiguous, then what is left.

    All powers of two.
    """
    c, s = triton.next_power_of_2(units), triton.next_power_of_2(positions)
    if units_first:
        tile_units = min(c, 128, tile)
        tile_positions = min(s, tile // tile_units)
    else:
        tile_positions = min(s, tile // 4)
        tile_units = min(c, max(1, tile // 4 // tile_positions))
    return tile // tile_units // tile_positions, tile_units, tile_positions


@triton.jit
def position_offset(s, B, stride_a, stride_b, MANY: tl.constexpr):
    """Where position s = a * B + b lies."""
    return s // B * stride_a + s % B * stride_b if MANY else s * stride_b
