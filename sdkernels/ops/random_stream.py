r"""The random numbers of every noisy op: a value depends on what it is for, and on nothing else.

Maths
-----
Philox4x32-10 (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*) turns a key and a counter into four
32-bit words :math:`r_0 \dots r_3`. Here

============= =========================================================================
key           the 64-bit seed, its low word first
counter 0     the element's index within an example of the site, divided by 4
counter 1     the example's index in the data set
counter 2     the configuration's id
counter 3     the site's id
============= =========================================================================

and the element takes the word that the remainder of that division names. So a draw is the same at any batch size, tile,
thread count, device and backend. The words become

.. math::

   u &= \lfloor r / 2^8 \rfloor\, 2^{-24} \in [0, 1) \\
   (n_0, n_1) &= \sqrt{-2 \ln (1 - u_0)}\; (\cos 2 \pi u_1, \sin 2 \pi u_1)

and :math:`(n_2, n_3)` likewise from :math:`u_2, u_3` (Box and Muller 1958). Logarithm, sine and cosine are polynomials
(``csrc/fit_normals.py``) after an exact reduction by integer operations; multiplications and additions are rounded one
by one, never fused, and the square root is correctly rounded. So every backend gives the same bits. Against float64 a
normal is off by at most 6e-7. The largest is :math:`\sqrt{48 \ln 2} = 5.77` standard deviations.

These are not torch's normals, and cannot be: no two libraries agree in their last bits.
"""

import torch
from torch import Tensor

from sdkernels.ops.backend import dispatcher, native_function, triton_version
from sdkernels.ops.normal_coefficients import COS, LOG, SIN

KINDS = ("bits", "uniform", "normal")  # a kind's place is its number in the kernels

_WORD = 2**32
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
ROOT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) in float32
TWO_LN_2 = 1.3862943649291992  # 2 ln 2 in float32


def random_stream(
    kind: str,
    seed: Tensor | int,  # []
    configurations: Tensor,  # [K]
    examples: Tensor,  # [N]
    elements: int,
    *,
    site: int = 0,
) -> Tensor:  # [K, N, elements]
    """Draws ``[K, N, elements]`` of the stream that noisy ops add: to look at, to store, to compare with.

    Args:
        kind: ``"normal"`` or ``"uniform"`` (float32), or ``"bits"``: Philox's words, 0 to 2**32 - 1 in int64.
        seed: any 64 bits, as an int or an int64 tensor ``[]``.
        configurations: ids, int64 ``[K]``, 0 to 2**32 - 1.
        examples: indices in the data set, int64 ``[N]``, likewise.
        elements: how many elements an example has at this site, at most 2**34.
        site: the site's id, 0 to 2**32 - 1.

    Returns:
        ``[K, N, elements]`` on the device of ``examples``.

    Raises:
        TypeError: ids that are not int64.
        ValueError: an unknown kind, or ids out of range.

    Example:
        >>> ids = torch.tensor([0])
        >>> random_stream("bits", 0, ids, ids, 4)  # the first of the known answers of Philox4x32-10
        tensor([[[1713891541, 3781805453, 3159862348, 2600524760]]])
        >>> random_stream("normal", 7, ids, torch.tensor([41, 42]), 3).shape
        torch.Size([1, 2, 3])
    """
    if kind not in KINDS:
        raise ValueError(f"random_stream: kind={kind!r}; it is one of {', '.join(KINDS)}")
    seed = seed_tensor(seed, examples.device)
    result: Tensor = torch.ops.sdkernels.random_stream(
        examples, configurations, seed, KINDS.index(kind), elements, site
    )
    return result


def seed_tensor(seed: Tensor | int, device: torch.device) -> Tensor:
    """A seed as ops take it: an int64 tensor []; an int's lowest 64 bits."""
    if isinstance(seed, Tensor):
        return seed.to(device)
    wrapped = seed % 2**64
    return torch.tensor(wrapped - 2**64 if wrapped >= 2**63 else wrapped, device=device)


def check_ids(op: str, device: torch.device, **ids: Tensor) -> None:
    """Refuse ids that are no counter words.

    Raises:
        TypeError: they are not int64.
        ValueError: they are not [n], stand on another device, or lie outside 0 to 2**32 - 1.
    """
    for name, given in ids.items():
        if given.dtype != torch.int64:
            raise TypeError(f"{op}: {name} is {given.dtype}; ids are int64")
        if given.device != device:
            raise ValueError(f"{op}: {name} is on {given.device}, the rest on {device}")
        if given.ndim != 1 or len(given) == 0:
            raise ValueError(f"{op}: {name} {list(given.shape)} must be a list of ids, and not an empty one")
        if int(given.min()) < 0 or int(given.max()) >= _WORD:
            raise ValueError(f"{op}: {name} must lie in 0 to 2**32 - 1; got {int(given.min())} to {int(given.max())}")


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> list[Tensor]:
    """Four words for each counter; all int64 that hold unsigned 32-bit words, broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 64 bits; int64 wraps round to the same ones
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, _low(p1), _high(p0) ^ c3 ^ k1, _low(p0)
        k0, k1 = (k0 + _KEY_STEPS[0]) % _WORD, (k1 + _KEY_STEPS[1]) % _WORD
    return [c0, c1, c2, c3]


def uniform_of(words: Tensor) -> Tensor:
    """Words -> float32 in [0, 1)."""
    return (words >> 8).float() * 2.0**-24


def normals_of(r0: Tensor, r1: Tensor) -> tuple[Tensor, Tensor]:
    """Two words -> two independent normals, float32."""
    # -2 ln(m 2**-24) with m = f 2**e, f in [sqrt(1/2), sqrt(2)), so that t = f - 1 keeps all digits where u is near 1
    bits = (2**24 - (r0 >> 8)).float().view(torch.int32) - ROOT_HALF
    exponent = bits >> 23
    t = ((bits & 0x7FFFFF) + ROOT_HALF).view(torch.float32) - 1
    square = (151 - 127 - exponent).float() * TWO_LN_2 + t * _polynomial(LOG, t)
    radius = square.double().sqrt().float()  # torch's own float32 root is not correctly rounded
    # the nearest quarter turn, and the rest of the angle as a fraction of one
    v = r1 >> 8
    quarter = (v + 2**21) >> 22
    y = (v - (quarter << 22)).float() * 2.0**-22
    y2 = y * y
    sine, cosine = y * _polynomial(SIN, y2), _polynomial(COS, y2)
    odd = (quarter & 1).bool()
    cos = torch.where(odd, sine, cosine)
    sin = torch.where(odd, cosine, sine)
    cos = torch.where(((quarter + 1) & 2).bool(), -cos, cos)
    sin = torch.where((quarter & 2).bool(), -sin, sin)
    return radius * cos, radius * sin


def reference(examples: Tensor, configurations: Tensor, seed: Tensor, kind: int, elements: int, site: int) -> Tensor:
    """The specification, in pure torch."""
    quads = torch.arange((elements + 3) // 4, device=examples.device)
    counter = torch.broadcast_tensors(
        quads,
        examples[:, None],
        configurations[:, None, None],
        torch.full((), site, dtype=torch.int64, device=examples.device),
    )
    words = philox(counter, seed)
    if KINDS[kind] == "normal":
        words = [*normals_of(*words[:2]), *normals_of(*words[2:])]
    elif KINDS[kind] == "uniform":
        words = [uniform_of(word) for word in words]
    return torch.stack(words, -1).flatten(-2)[..., :elements].contiguous()


def native(examples: Tensor, configurations: Tensor, seed: Tensor, kind: int, elements: int, site: int) -> Tensor:
    """The C++ version for CPU tensors, the CUDA version for CUDA tensors."""
    out = _fake(examples, configurations, seed, kind, elements, site)
    examples, configurations = examples.contiguous(), configurations.contiguous()
    native_function("random_stream", examples)(
        seed.data_ptr(),
        configurations.data_ptr(),
        examples.data_ptr(),
        out.data_ptr(),
        len(configurations),
        len(examples),
        elements,
        site,
        kind,
    )
    return out


IMPLEMENTATIONS = {"reference": reference, "native": native, "triton": triton_version("random_stream")}


def _fake(examples: Tensor, configurations: Tensor, seed: Tensor, kind: int, elements: int, site: int) -> Tensor:
    dtype = torch.int64 if KINDS[kind] == "bits" else torch.float32
    return examples.new_empty((len(configurations), len(examples), elements), dtype=dtype)


def _check(examples: Tensor, configurations: Tensor, seed: Tensor, kind: int, elements: int, site: int) -> None:
    check_ids("random_stream", examples.device, examples=examples, configurations=configurations)
    check_seed("random_stream", examples.device, seed)
    if kind not in range(len(KINDS)):
        raise ValueError(f"random_stream: kind={kind}; it is 0 to {len(KINDS) - 1}, one of {', '.join(KINDS)}")
    if not 0 < elements <= 2**34:
        raise ValueError(f"random_stream: elements={elements}; it must lie in 1 to 2**34")
    check_site("random_stream", site)


def check_seed(op: str, device: torch.device, seed: Tensor) -> None:
    """Refuse a seed that is no int64 tensor [] on ``device``."""
    if seed.dtype != torch.int64 or seed.shape != () or seed.device != device:
        raise ValueError(f"{op}: seed is an int64 tensor [] on {device}; got {seed.dtype} {list(seed.shape)}")


def check_site(op: str, site: int) -> None:
    """Refuse a site's id that is no counter word."""
    if not 0 <= site < _WORD:
        raise ValueError(f"{op}: site={site}; it must lie in 0 to 2**32 - 1")


torch.library.define(
    "sdkernels::random_stream",
    "(Tensor examples, Tensor configurations, Tensor seed, int kind, int elements, int site) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("sdkernels::random_stream", ("cpu", "cuda"))(dispatcher("random_stream", IMPLEMENTATIONS, _check))
torch.library.register_fake("sdkernels::random_stream")(_fake)


def _low(product: Tensor) -> Tensor:
    return product & 0xFFFFFFFF


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & 0xFFFFFFFF


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule from the highest power down, each step rounded: p * x, then + c."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
