r"""Walk ablation curves through a chain of linear layers: nested sums and slices instead of whole products.

With units numbered so that the last to be clamped comes first, the living units of every configuration of an order are
a *prefix*: a contiguous slice of the permuted weights, with no gather and no mask.

*Nested.* The first Linear's output at point t is a sum over living units. The curve is walked backwards, from
everything clamped to nothing, and units are added back:

.. math:: z_t = z_{t+1} + W_{:, \text{returning}}\, a_{\text{returning}}

so that a whole curve costs one product. Adding only, never subtracting, keeps rounding small.

*Compact.* Every later Linear multiplies living inputs into living outputs alone.

A clamped unit is no longer a variable: what it sends on, pointwise(value), folds into the next layer's bias.

Two layers with a ReLU between them run in one kernel, :func:`sdkernels.ops.nested_linear`; every other chain is
walked here, with activations units first, [C, N]: a prefix of units is then one dense block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from sdkernels.engine.chain import Chain, NoChainError, Pointwise, Stage
from sdkernels.engine.families import Cumulative
from sdkernels.engine.graph import Graph, is_close
from sdkernels.ops import nested_linear
from sdkernels.ops.backend import choose_backend

# What running sums are kept in: half precision would lose digits.
CHAIN_DTYPES = (torch.float64, torch.float32)

# Work buffers of one tile, in bytes: what stays in a processor's cache, and what keeps a GPU busy.
WORKING_SET = {"cpu": 16 * 2**20, "cuda": 2**30}

# Permuted weights kept from tile to tile, in bytes; those of further orders are made again for each tile.
PERMUTED_WEIGHTS = 2**28


def check_chain(
    graph: Graph, chain: Chain, family: Cumulative, classes: int, activation: Tensor, logits: Tensor
) -> None:
    """Walk the chain with nothing clamped, and see that it gives the model's ``logits``.

    Raises:
        NoChainError: it does not, so its layers do something else than their weights say; or its dtype is too short for
            running sums.
    """
    if activation.dtype not in CHAIN_DTYPES:
        raise NoChainError(f"running sums in {activation.dtype} would lose digits")
    intact = replace(family, orders=family.orders[:1], points=torch.zeros(1, dtype=torch.int64))
    unused = [torch.zeros(())] * len(family.unit_counts)
    try:
        run = ChainRun(graph, chain, intact, unused, classes, activation)
        walked = torch.cat([part[0] for _, _, part in run.logits(activation)])
    except RuntimeError as error:  # the user's own modules are among what runs
        raise NoChainError(f"the chain does not run ({error})") from error
    if not is_close(walked, logits):
        raise NoChainError("the chain of its layers gives other logits than the model itself")


class ChainRun:
    """Walks curves through a chain, a tile of examples at a time.

    Args:
        graph, chain: the traced model and its chain.
        family: the orders and points.
        values: for each site, what a clamped unit becomes, [C] or a scalar.
        classes: L.
        like: a tensor of the activations' dtype and device.
    """

    def __init__(
        self, graph: Graph, chain: Chain, family: Cumulative, values: list[Tensor], classes: int, like: Tensor
    ) -> None:
        self._graph, self._chain, self._family, self._classes = graph, chain, family, classes
        self._device = like.device
        self._sent_on = [_sent_on(stage, values, like) for stage in chain.stages]
        self._permuted: dict[int, _Permuted] = {}
        self.is_fused = _is_fused(chain, like)
        points = len(family.points)
        widths = [stage.linear.out_features for stage in chain.stages]
        working_set = WORKING_SET.get(like.device.type, WORKING_SET["cpu"])
        scored = classes * (like.element_size() + 16)  # a point's logits, and their scores in float64
        if self.is_fused:  # all points of an order at once
            self.tile = max(16, working_set // (points * scored))
            return
        held = like.element_size() * (2 * chain.stages[0].linear.in_features + widths[0] + sum(widths))
        self.tile = max(16, working_set // (held + scored))
        self._points_a_flush = min(points, max(1, working_set // (scored * self.tile)))
        self._sums = like.new_empty(widths[0] * self.tile)
        self._flush = like.new_empty(self._points_a_flush * classes * self.tile)
        self._buffers = [like.new_empty(width * self.tile) for width in widths]

    def logits(self, activation: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """For the first site's activation [N, C]: which of the examples, runs of configurations, and their logits
        [K, N, L], valid until the next are asked for."""
        examples = len(activation)
        for function in self._chain.stages[0].before:
            activation = function(activation)
        points = len(self._family.points)
        for first in range(0, examples, self.tile):
            tile = slice(first, min(first + self.tile, examples))
            units_first = None if self.is_fused else activation[tile].t().contiguous()  # [C, N]
            for order in range(len(self._family.orders)):
                permuted = self._permute(order)
                if units_first is None:
                    runs = self._fused(permuted, activation[tile])
                else:
                    runs = self._flushed(permuted, units_first)
                for start, logits in runs:
                    at = order * points + start
                    yield tile, slice(at, at + len(logits)), logits.transpose(1, 2)

    def _fused(self, permuted: "_Permuted", activation: Tensor) -> Iterator[tuple[int, Tensor]]:
        """All points of an order by one kernel: the first of them, and logits [T, L, N]."""
        first, last = permuted.layers
        logits = nested_linear(
            activation,
            permuted.units,
            first.weight,
            first.bias,
            first.living_in,
            first.living_out,
            head=last.weight,
            head_bias=last.bias,
        )
        logits = _apply(last.path, logits, logits)
        yield 0, torch.stack([self._tail(at_point) for at_point in logits]) if self._chain.tail else logits

    def _flushed(self, permuted: "_Permuted", activation: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Runs of points of an order: the first of them, and logits [points, L, N]."""
        n = activation.shape[1]
        walk = self._walk(permuted, activation[permuted.units])
        for stop in range(len(self._family.points), 0, -self._points_a_flush):
            start = max(0, stop - self._points_a_flush)
            logits = self._flush[: (stop - start) * self._classes * n].view(stop - start, self._classes, n)
            for at in range(stop - start - 1, -1, -1):
                logits[at] = next(walk)
            yield start, logits

    def _walk(self, permuted: "_Permuted", activation: Tensor) -> Iterator[Tensor]:
        """Logits [L, N] from the last point to the first; each is valid until the next."""
        n = activation.shape[1]
        first, *later = permuted.layers
        sums = _view(self._sums, len(first.weight), n)  # [D, N]
        fixed_bias = len(first.bias) == 1
        sums.copy_(first.bias[0, :, None]) if fixed_bias else sums.zero_()
        added = 0
        for point in range(len(self._family.points) - 1, -1, -1):
            if (living := int(first.living_in[point])) > added:
                sums.addmm_(first.weight[:, added:living], activation[added:living])
                added = living
            rows = int(first.living_out[point])
            buffer = _view(self._buffers[0], rows, n)
            hidden = sums[:rows]
            if not fixed_bias:
                hidden = torch.add(hidden, first.bias[point, :rows, None], out=buffer)
            hidden = _apply(first.path, hidden, buffer)
            for layer, flat in zip(later, self._buffers[1:], strict=True):
                rows = int(layer.living_out[point])
                bias = layer.bias[point if len(layer.bias) > 1 else 0, :rows, None]
                weight = layer.weight[:rows, : int(layer.living_in[point])]
                product = torch.addmm(bias, weight, hidden, out=_view(flat, rows, n))
                hidden = _apply(layer.path, product, product)
            yield self._tail(hidden)

    def _tail(self, last: Tensor) -> Tensor:
        """The last Linear's output [D, N] -> logits [L, N]."""
        return self._graph.tail_logits(self._chain.tail, last.t().contiguous()).t() if self._chain.tail else last

    def _permute(self, order: int) -> "_Permuted":
        if order in self._permuted:
            return self._permuted[order]
        units = [site_units.to(self._device) for site_units in self._family.last_to_die_first(order)]
        living = self._family.living(order)  # [T, sites]
        layers: list[_Layer] = []
        for stage, following, sent_on in zip_longest(self._chain.stages, self._chain.stages[1:], self._sent_on):
            weight = stage.linear.weight.detach()  # [D, C]
            bias = weight.new_zeros(len(weight)) if stage.linear.bias is None else stage.linear.bias.detach()
            living_in, living_out = (torch.full((len(living),), width) for width in weight.shape[::-1])
            if stage.site is not None:
                weight, living_in = weight[:, units[stage.site]], living[:, stage.site]
                sent_on = None if sent_on is None else sent_on[units[stage.site]]
            if following is not None and following.site is not None:
                weight, living_out = weight[units[following.site]], living[:, following.site]
                bias = bias[units[following.site]]
            bias = bias[None] if sent_on is None else _bias_with_clamped(weight, bias, sent_on, living_in)
            path = stage.after + (following.before if following else [])
            layers.append(_Layer(weight.contiguous(), bias, living_in, living_out, path))
        first_site = self._chain.stages[0].site
        assert first_site is not None  # noqa: S101 - a chain starts at a site
        permuted = _Permuted(units[first_site], layers)
        held = sum(layer.bytes for p in (permuted, *self._permuted.values()) for layer in p.layers)
        if held <= PERMUTED_WEIGHTS:
            self._permuted[order] = permuted
        return permuted


@dataclass(frozen=True)
class _Layer:
    weight: Tensor  # [D, C], living units first on both sides
    bias: Tensor  # [1, D], or [T, D] where clamped units send something on
    living_in: Tensor  # [T]
    living_out: Tensor  # [T]
    path: list[Pointwise]  # on the way to the next Linear

    @property
    def bytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes


@dataclass(frozen=True)
class _Permuted:
    units: Tensor  # [C] of the first site, the last to be clamped first
    layers: list[_Layer]


def _is_fused(chain: Chain, like: Tensor) -> bool:
    """Whether a kernel has this chain: Linear, ReLU, Linear."""
    if len(chain.stages) != 2 or choose_backend(like.device, "nested_linear") == "reference":
        return False
    first, last = chain.stages
    return first.after + last.before == [F.relu]


def _view(flat: Tensor, rows: int, columns: int) -> Tensor:
    return flat[: rows * columns].view(rows, columns)


def _sent_on(stage: Stage, values: list[Tensor], like: Tensor) -> Tensor | None:
    """What each clamped unit sends to the stage's Linear, [C] float64; None where that is nothing but zeros."""
    if stage.site is None:
        return None
    clamped = values[stage.site].to(like.device, like.dtype).expand(stage.linear.in_features).clone()
    for function in stage.before:
        clamped = function(clamped)
    return clamped.double() if clamped.count_nonzero() else None


def _bias_with_clamped(weight: Tensor, bias: Tensor, sent_on: Tensor, living: Tensor) -> Tensor:
    """bias + W[:, clamped] sent_on[clamped] at every point, [T, D]; summed in float64."""
    contributions = weight.double() * sent_on  # [D, C]
    from_the_last = contributions.flip(1).cumsum(1)  # column j: the last j + 1 units
    nothing = from_the_last.new_zeros(len(weight), 1)
    clamped = weight.shape[1] - living.to(weight.device)  # [T]
    return (bias.double()[:, None] + torch.cat([nothing, from_the_last], 1)[:, clamped]).t().to(weight.dtype)


def _apply(path: list[Pointwise], source: Tensor, out: Tensor) -> Tensor:
    """The functions one after another; ``source`` is left as it was unless it is ``out``."""
    for function in path:
        source = torch.clamp_min(source, 0, out=out) if function is F.relu else function(source)
    return source
