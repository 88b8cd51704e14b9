r"""3x3 convolutions as 36 matrix products, which slices of weights may go into: Winograd's F(4x4, 3x3).

Maths
-----
A convolution with stride 1 and padding 1 is cut into tiles of 4x4 outputs, each of which reads 6x6 inputs :math:`d`,
zeros beyond the map. With :math:`g` the 3x3 weights between one unit that is read and one that is written,

.. math:: Y = A^T \Bigl[ \sum_c (G g_c G^T) \odot (B^T d_c B) \Bigr] A

so that for each of the 36 places the sum over c is a product of matrices, tiles by units and units by units:

.. math:: V_i = \text{winograd\_input}(x)_i, \quad U_i = \text{winograd\_weight}(w)_i, \quad
          y = \text{winograd\_output}\bigl((V_i U_i)_{i < 36}\bigr)

That is 36 multiplications for 16 outputs, where the definition has 144. The transforms are polynomials of degree 3 and
2, their product read off at the points :math:`0, \pm a, \pm b, \infty`:

.. math::

   B^T = \begin{pmatrix}
       a^2 b^2 & 0 & -(a^2 + b^2) & 0 & 1 & 0 \\
       0 & -a b^2 & -b^2 & a & 1 & 0 \\
       0 & a b^2 & -b^2 & -a & 1 & 0 \\
       0 & -a^2 b & -a^2 & b & 1 & 0 \\
       0 & a^2 b & -a^2 & -b & 1 & 0 \\
       0 & a^2 b^2 & 0 & -(a^2 + b^2) & 0 & 1
   \end{pmatrix}, \quad
   A^T = \begin{pmatrix}
       1 & 1 & 1 & 1 & 1 & 0 \\
       0 & a & -a & b & -b & 0 \\
       0 & a^2 & a^2 & b^2 & b^2 & 0 \\
       0 & a^3 & -a^3 & b^3 & -b^3 & 1
   \end{pmatrix}

and row p of :math:`G` is :math:`(1, p, p^2)` over the product of p's distances to the other finite points, (0, 0, 1)
for infinity. Any two numbers a and b do, in exact arithmetic. Here :math:`a = 5/8, b = 3/2`: B and A are exact in
float32, and the error is about half of what the usual 1 and 2 leave. It is four times (64 units) to six times (512)
that of torch's best direct sum, rms 6e-7 and 1e-6 of the outputs' own. Powers of two moved between the rows of the
matrices change no bit.

Sources: Lavin and Gray 2016, arXiv 1509.09308; Barabasz, Anderson, Soodhalter and Gregg 2018, arXiv 1803.10986, on
the choice of points.

Floor: memory. For maps of whole tiles the input's transform reads x once and writes 2.25 times as much.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function
from sdkernels.ops.layout import DTYPE_CODES

DTYPES = (torch.float64, torch.float32)

TILE = 4  # outputs on a side
PATCH = 6  # inputs on a side
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # and infinity; as in csrc/core/winograd_cpu.h


def winograd_weight(
    weight: Tensor,  # [D, C, 3, 3]
) -> Tensor:  # [36, C, D]
    """The weights of a 3x3 convolution for its 36 products, ``G g G^T``.

    Computed in float64 and rounded once. Living units are a slice, ``[:, :c, :d]``: matrices with unit stride along D.

    Args:
        weight: ``[D, C, 3, 3]``, float64 or float32.

    Returns:
        ``[36, C, D]``, contiguous, in ``weight``'s dtype.

    Raises:
        TypeError: dtypes other than these.
        ValueError: another shape.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> winograd_weight(torch.ones(5, 2, 3, 3)).shape
        torch.Size([36, 2, 5])
    """
    _refuse_gradients("winograd_weight", weight)
    _check_dtypes("winograd_weight", weight=weight)
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"winograd_weight: weight is [D, C, 3, 3]; got {list(weight.shape)}")
    g = weight_matrix().to(weight.device)
    result = torch.einsum("ip,dcpq,jq->ijcd", g, weight.double(), g)
    return result.reshape(PATCH * PATCH, *weight.shape[1::-1]).to(weight.dtype).contiguous()


def winograd_input(
    x: Tensor,  # [N, C, H, W]
    *,
    relu: bool = False,
) -> Tensor:  # [36, T, C]
    """The inputs of a 3x3 convolution for its 36 products, ``B^T d B`` for every tile: the rows of the products.

    Tile t is (n, row of tiles, column of tiles), in this order. The map is padded with zeros, by 1 and up to whole
    tiles.

    Args:
        x: ``[N, C, H, W]``, float64 or float32, any strides; what does not have its units side by side, as
            channels-last memory has, is copied first.
        relu: rectify ``x`` first.

    Returns:
        ``[36, T, C]``, ``T = N ceil(H / 4) ceil(W / 4)``, contiguous.

    Raises:
        TypeError: dtypes other than these.
        ValueError: another number of dimensions, a map without positions.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> winograd_input(torch.ones(2, 5, 8, 7)).shape
        torch.Size([36, 8, 5])
    """
    _refuse_gradients("winograd_input", x)
    result: Tensor = torch.ops.sdkernels.winograd_input(x, relu)
    return result


def winograd_output(
    m: Tensor,  # [36, T, D]
    bias: Tensor | None,  # [D]
    height: int,
    width: int,
    *,
    relu: bool = False,
    add: Tensor | None = None,  # [N, D, H, W]
) -> Tensor:  # [N, D, H, W]
    """What a 3x3 convolution gives, from its 36 products: ``act(A^T m A + bias + add)``.

    Args:
        m: the products ``[36, T, D]``, tiles as :func:`winograd_input` counts them, float64 or float32, any strides;
            copied first where units are not side by side.
        bias: ``[D]``, of ``m``'s dtype, as ``add`` is.
        height, width: of the map.
        relu: rectify at the end.
        add: ``[N, D, H, W]``, what a residual connection adds before the ReLU; best in channels-last memory.

    Returns:
        ``[N, D, H, W]`` in channels-last memory.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or devices that do not fit, a map without positions.
        RuntimeError: called where gradients are wanted; there are none.

    Example:
        >>> x, weight, bias = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.ones(1)
        >>> m = winograd_input(x) @ winograd_weight(weight)
        >>> winograd_output(m, bias, 3, 3)[0, 0].round(decimals=4)
        tensor([[ 5.,  7.,  5.],
                [ 7., 10.,  7.],
                [ 5.,  7.,  5.]])
    """
    _refuse_gradients("winograd_output", m, bias, add)
    result: Tensor = torch.ops.sdkernels.winograd_output(m, bias, height, width, relu, add)
    return result


def tiles(height: int, width: int) -> tuple[int, int]:
    """How many tiles a map has, down and across."""
    return -(-height // TILE), -(-width // TILE)


def weight_matrix() -> Tensor:
    """G ``[6, 3]``, float64."""
    rows = []
    for p in POINTS:
        distances = torch.tensor([p - q for q in POINTS if q != p], dtype=torch.float64)
        rows.append(torch.tensor([1.0, p, p * p], dtype=torch.float64) / distances.prod())
    return torch.stack([*rows, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)])


def input_matrix() -> Tensor:
    """B^T ``[6, 6]``, float64: row p has the coefficients of the product of x - q over the other finite points q."""
    _, a, _, b, _ = POINTS
    rows = [[a * a * b * b, 0, -(a * a + b * b), 0, 1, 0]]
    for p, q in ((a, b), (-a, b), (b, a), (-b, a)):
        rows.append([0, -p * q * q, -q * q, p, 1, 0])
    rows.append([0, a * a * b * b, 0, -(a * a + b * b), 0, 1])
    return torch.tensor(rows, dtype=torch.float64)


def output_matrix() -> Tensor:
    """A^T ``[4, 6]``, float64."""
    rows = [[*(p**power for p in POINTS), float(power == TILE - 1)] for power in range(TILE)]
    return torch.tensor(rows, dtype=torch.float64)


def reference_input(x: Tensor, relu: bool) -> Tensor:
    """The specification of the inputs' transform, in pure torch."""
    examples, units, height, width = x.shape
    down, across = tiles(height, width)
    if relu:
        x = torch.where(x < 0, 0, x)
    x = F.pad(x, (1, TILE * across + 1 - width, 1, TILE * down + 1 - height))
    patches = x.unfold(2, PATCH, TILE).unfold(3, PATCH, TILE)  # [N, C, down, across, 6, 6]
    b = input_matrix().to(x)
    v = (b @ patches @ b.t()).permute(4, 5, 0, 2, 3, 1)
    return v.reshape(PATCH * PATCH, examples * down * across, units).contiguous()


def reference_output(m: Tensor, bias: Tensor | None, height: int, width: int, relu: bool, add: Tensor | None) -> Tensor:
    """The specification of the outputs' transform, in pure torch."""
    down, across = tiles(height, width)
    y = _fake_output(m, bias, height, width)
    examples, outputs = y.shape[:2]
    a = output_matrix().to(m)
    places = m.reshape(PATCH, PATCH, examples, down, across, outputs).permute(2, 3, 4, 5, 0, 1)
    maps = (a @ places @ a.t()).permute(0, 3, 1, 4, 2, 5)  # [N, D, down, 4, across, 4]
    maps = maps.reshape(examples, outputs, TILE * down, TILE * across)[:, :, :height, :width]
    if bias is not None:
        maps = maps + bias[:, None, None]
    if add is not None:
        maps = maps + add
    return y.copy_(torch.where(maps < 0, 0, maps) if relu else maps)


def native_input(x: Tensor, relu: bool) -> Tensor:
    """The C++ version: CPU tensors."""
    v = _fake_input(x)
    x = _units_last(x.permute(0, 2, 3, 1))
    native_function("winograd_input", x)(
        x.data_ptr(), v.data_ptr(), list(x.shape), list(x.stride()), relu, DTYPE_CODES[x.dtype]
    )
    return v


def native_output(m: Tensor, bias: Tensor | None, height: int, width: int, relu: bool, add: Tensor | None) -> Tensor:
    """The C++ version: CPU tensors."""
    y = _fake_output(m, bias, height, width)
    m = _units_last(m)
    bias = None if bias is None else bias.contiguous()
    add = None if add is None else _units_last(add.permute(0, 2, 3, 1))
    native_function("winograd_output", m)(
        m.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if add is None else add.data_ptr(),
        y.data_ptr(),
        list(y.permute(0, 2, 3, 1).shape),
        list(m.stride()),
        [0] * 4 if add is None else list(add.stride()),
        relu,
        DTYPE_CODES[m.dtype],
    )
    return y


# No Triton version: on GPUs cuDNN's own Winograd is there for convolutions.
INPUT_IMPLEMENTATIONS = {"reference": reference_input, "native": native_input}
OUTPUT_IMPLEMENTATIONS = {"reference": reference_output, "native": native_output}


def _units_last(t: Tensor) -> Tensor:
    """Itself where its last dimension lies side by side, else a copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _fake_input(x: Tensor, relu: bool = False) -> Tensor:
    examples, units, height, width = x.shape
    down, across = tiles(height, width)
    return x.new_empty(PATCH * PATCH, examples * down * across, units)


def _fake_output(m: Tensor, bias: Tensor | None, height: int, width: int, *_: bool | Tensor | None) -> Tensor:
    down, across = tiles(height, width)
    return m.new_empty(m.shape[1] // (down * across), height, width, m.shape[2]).permute(0, 3, 1, 2)


def _refuse_gradients(op: str, *floats: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats):
        raise RuntimeError(f"{op} has no gradient; call it under torch.no_grad()")


def _check_dtypes(op: str, **tensors: Tensor | None) -> None:
    dtypes = {name: t.dtype for name, t in tensors.items() if t is not None}
    if len(set(dtypes.values())) > 1 or not set(dtypes.values()) <= set(DTYPES):
        got = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{op}: every tensor is of one of {', '.join(map(str, DTYPES))}; got {got}")


def _check_input(x: Tensor, relu: bool) -> None:
    _check_dtypes("winograd_input", x=x)
    if x.ndim != 4 or 0 in x.shape[2:]:
        raise ValueError(f"winograd_input: x is [N, C, H, W], H and W at least 1; got {list(x.shape)}")


def _check_output(m: Tensor, bias: Tensor | None, height: int, width: int, relu: bool, add: Tensor | None) -> None:
    _check_dtypes("winograd_output", m=m, bias=bias, add=add)
    if height < 1 or width < 1:
        raise ValueError(f"winograd_output: height and width are at least 1; got {height} and {width}")
    down, across = tiles(height, width)
    if m.ndim != 3 or len(m) != PATCH * PATCH or m.shape[1] % (down * across):
        raise ValueError(
            f"winograd_output: m is [36, T, D], T a multiple of the {down} x {across} tiles of a map of {height} x "
            f"{width}; got {list(m.shape)}"
        )
    outputs = m.shape[2]
    if bias is not None and list(bias.shape) != [outputs]:
        raise ValueError(f"winograd_output: bias is [D] = [{outputs}], as m has; got {list(bias.shape)}")
    expected = [m.shape[1] // (down * across), outputs, height, width]
    if add is not None and list(add.shape) != expected:
        raise ValueError(f"winograd_output: add is [N, D, H, W] = {expected}; got {list(add.shape)}")
    if any(t is not None and t.device != m.device for t in (bias, add)):
        raise ValueError(f"winograd_output: every tensor must be on {m.device}, as m is")


torch.library.define(
    "sdkernels::winograd_input",
    "(Tensor x, bool relu) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::winograd_input", ("cpu", "cuda"))(
    dispatcher("winograd_input", INPUT_IMPLEMENTATIONS, _check_input)
)
torch.library.register_fake("sdkernels::winograd_input")(_fake_input)
torch.library.define(
    "sdkernels::winograd_output",
    "(Tensor m, Tensor? bias, SymInt height, SymInt width, bool relu, Tensor? add) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::winograd_output", ("cpu", "cuda"))(
    dispatcher("winograd_output", OUTPUT_IMPLEMENTATIONS, _check_output)
)
torch.library.register_fake("sdkernels::winograd_output")(_fake_output)
