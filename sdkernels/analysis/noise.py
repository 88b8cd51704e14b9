"""Robustness to noise: accuracy against the scale of Gaussian noise on all units at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sdkernels.analysis.axes import axes
from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL
from sdkernels.analysis.measure import Options, measure
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.scored import Scored, axis_label, check_plottable, columns, draw_band
from sdkernels.engine.arguments import flag, is_one_of, is_whole, whole_number
from sdkernels.engine.averages import Spread, average
from sdkernels.engine.batches import Batches
from sdkernels.engine.checks import check_default_device
from sdkernels.engine.families import Noise
from sdkernels.engine.keeping import Workers
from sdkernels.engine.memory import check_room
from sdkernels.engine.scores import Metric, Metrics
from sdkernels.engine.sites import Layers, Site

Deviations = Tensor | Mapping[str, Tensor]
SCALES = (-1.5, 1.0)  # powers of ten, where a number of scales is given


@dataclass(frozen=True, eq=False, kw_only=True)
class NoiseCurve(Scored):
    """Scores under noise of T scales, R runs of each.

    Attributes:
        scales: float64 ``[T]``.
        deviations: by layer, each unit's standard deviation, float64 ``[C]``, that scales multiply.
        sums, ambiguous, seed and the rest: as :class:`~sdkernels.analysis.scored.Scored` says, ``[...]`` being
            ``[R, T]``; no value.
    """

    scales: Tensor
    deviations: Mapping[str, Tensor]

    _FORMAT: ClassVar[str] = "sdkernels.NoiseCurve/1"
    _EACH: ClassVar[str] = "R T"
    _LAYOUT: ClassVar[Mapping[str, str]] = {"scales": "float64 T"}
    _TENSOR_FIELDS: ClassVar[tuple[str, ...]] = ("scales", *Scored._TENSOR_FIELDS)
    _TENSORS_BY_LAYER: ClassVar[tuple[str, ...]] = ("deviations", *Scored._TENSORS_BY_LAYER)

    def to_pandas(self) -> Any:
        """A long table, one row a run and scale: counts, means, ``ambiguous``."""
        pandas = require("pandas", "NoiseCurve.to_pandas()")
        runs, scales = self.correct.shape
        table: dict[str, Any] = {
            "run": np.repeat(np.arange(runs), scales),
            "scale": np.tile(self.scales.numpy(), runs),
            "correct": self.correct.flatten().numpy(),
        }
        for name in self.sums:
            table |= columns(name, self.metric(name))
        table["ambiguous"] = self.ambiguous.flatten().numpy()
        table |= self._sampled_columns()
        return pandas.DataFrame(table)

    def plot(self, ax: Any = None, *, metric: str = "accuracy", label: str | None = None) -> Any:
        """Draw the mean over runs, a band of one standard deviation, and the intact model as a dashed line.

        Returns the matplotlib axes, logarithmic in the scale.
        """
        scores = self.metric(metric)
        check_plottable(metric, scores.shape)
        ax = axes(ax, "NoiseCurve.plot()")
        line = draw_band(ax, self.scales, scores, label=label)
        ax.axhline(float(self.baseline[metric]), color=line.get_color(), linestyle="--", linewidth=0.8)
        if (self.scales > 0).all():
            ax.set_xscale("log")
        ax.set_xlabel("scale of the noise")
        ax.set_ylabel(axis_label(metric), **LITERAL)
        return ax


def noise_robustness(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    scales: int | Sequence[float] | Tensor = 20,
    repeats: int = 10,
    scale_kind: Literal["std", "var"] = "std",
    sd: Deviations | None = None,
    sd_data: Any = None,
    per_map: bool = False,
    common_random_numbers: bool = False,
    metrics: Metric | Metrics = ("accuracy", "loss"),
    outcomes: bool = False,
    tolerance: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    method: Literal["auto", "loop"] = "auto",
    precision: Literal["float32", "float64", "tf32", "bfloat16"] | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    memory_fraction: float = 0.5,
    show_progress: bool = False,
    store: Path_ | None = None,
    workers: Workers | None = None,
) -> NoiseCurve:
    r"""Add Gaussian noise to all units of all layers at once, and score the network at each scale.

    With unit :math:`u`'s standard deviation :math:`\sigma_u` and scale :math:`s`, every element of its map becomes

    .. math:: a_u \leftarrow a_u + s\, \sigma_u\, \epsilon, \quad \epsilon \sim N(0, 1)

    (:math:`\sqrt s\, \sigma_u` where scales multiply the variance). Noise is added at the layer's output and not
    rectified again: name the ReLU to add it after the nonlinearity. Every example, run and, but for common random
    numbers, scale has draws of its own; they depend on the seed, the run, the scale, the example's place in the data
    and the element, so that no batch size, thread count or device changes them: see
    :func:`sdkernels.ops.random_stream`.

    Args:
        model, layers, data: as for :func:`sdkernels.cumulative_ablation`.
        scales: T of them, at least 0; or a number of them, log-spaced from 10^-1.5 to 10.
        repeats: R runs with other draws.
        scale_kind: whether a scale multiplies the standard deviation, ``"std"``, or the variance, ``"var"``.
        sd: standard deviations, a tensor ``[C]`` for one layer or a dict of these by layer; by default they are
            measured, over the examples and positions of ``sd_data``, in one pass.
        sd_data: the data set for that, by default ``data``. The paper takes the training set.
        per_map: one draw for all positions of a feature map, and not one for each element.
        common_random_numbers: the same draws for all scales of a run. Differences between scales are then less noisy,
            and work is shared: what is linear behind the first layers runs once a run, and not once a scale.
        metrics, outcomes: as there.
        tolerance, confidence: stop a run and scale early, once its accuracy is known well enough; as there.
        seed: of the draws, and of the order of the examples.
        method, precision, unit_dim, select, batch_size, memory_fraction, show_progress, store, workers: as there.

    Returns:
        A :class:`NoiseCurve`: int64 counts of correct predictions and float64 sums of losses, ``[R, T]``.

    Raises:
        ValueError, TypeError: scales that are negative or not finite, deviations that do not fit; and as
            :func:`sdkernels.cumulative_ablation`; each says what, where and the fix.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.3 and figure 2. The paper does not say whether scales multiply deviations or variances.

    Example:
        >>> import torch, sdkernels as sd
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> inputs = torch.randn(50, 4)
        >>> labels = model(inputs).argmax(1)
        >>> curve = sd.noise_robustness(model, "1", (inputs, labels), scales=[0, 0.1, 10], repeats=2)
        >>> curve.correct[:, 0].tolist(), bool(curve.correct[0, 2] < 50)
        ([50, 50], True)
    """
    check_default_device()
    factors = _check_scales(scales)
    repeats = whole_number("repeats", repeats, 1)
    check_room("repeats", repeats, repeats * len(factors) * 4 * 8)  # what is drawn, at which scale, and two scores
    per_map = flag("per_map", per_map)
    common_random_numbers = flag("common_random_numbers", common_random_numbers)
    if not is_one_of(scale_kind, ("std", "var")):
        raise ValueError(f"scale_kind={scale_kind!r}: a scale multiplies the standard deviation, 'std', or the 'var'")
    if sd is not None and sd_data is not None:
        raise ValueError("sd says what the deviations are, so that sd_data has nothing to say; give one")
    deviations: dict[str, Tensor] = {}

    def find_deviations(sites: list[Site], model: nn.Module, batches: Batches) -> list[Site]:
        deviations.update(_measured(sites, model, batches) if sd is None else _given(sites, sd))
        return sites

    def make_family(_unit_counts: tuple[int, ...]) -> Noise:
        strengths = factors if scale_kind == "std" else factors.sqrt()
        draws = torch.arange(repeats * len(factors))
        draws = draws // len(factors) if common_random_numbers else draws
        return Noise(strengths.repeat(repeats), draws, tuple(deviations.values()), per_map, options.seed)

    options = replace(Options.of(locals()), value_data=sd_data, value_data_called="sd_data")
    measured = measure(model, layers, data, make_family, options, find_deviations, called="noise_robustness")
    fields = measured.fields(repeats, len(factors), seed=options.seed) | {"value": ""}
    if measured.bounds is not None:
        fields["bounds"] = measured.bounds.view(repeats, len(factors), 2)
    return NoiseCurve(scales=factors, deviations=deviations, **fields)


def _check_scales(scales: int | Sequence[float] | Tensor) -> Tensor:
    """float64 [T]."""
    if is_whole(scales):
        count = whole_number("scales", scales, 1)
        check_room("scales", count, count * 4 * 8)
        return torch.logspace(*SCALES, count, dtype=torch.float64)
    try:
        found = torch.as_tensor(scales, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"scales must be numbers, or how many of them: {error}") from error
    if found.ndim != 1 or len(found) == 0 or not (found.isfinite() & (found >= 0)).all():
        raise ValueError(f"scales must be a row of finite numbers, at least 0; got {list(found.shape)}: {scales!r}")
    return found.clone()


def _measured(sites: list[Site], model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    spreads = [Spread(site) for site in sites]
    average(model, sites, batches, [[spread] for spread in spreads], batches.called)
    return {site.name: spread.deviation.cpu() for site, spread in zip(sites, spreads, strict=True)}


def _given(sites: list[Site], sd: Deviations) -> dict[str, Tensor]:
    names = [site.name for site in sites]
    if not isinstance(sd, Mapping):
        if len(sites) > 1:
            raise ValueError(f"sd is one tensor for {len(sites)} layers; give a dict of them, by {names}")
        sd = {names[0]: sd}
    if set(sd) != set(names):
        raise ValueError(f"sd is a dict of {sorted(sd)}; it must name the layers {sorted(names)}, each once")
    found: dict[str, Tensor] = {}
    for site in sites:
        given = torch.as_tensor(sd[site.name], dtype=torch.float64).cpu()
        if given.shape != (site.units,) or not (given.isfinite() & (given >= 0)).all():
            raise ValueError(
                f"sd for layer {site.name!r} must be [{site.units}], a finite number at least 0 for each unit; got "
                f"{list(given.shape)}"
            )
        found[site.name] = given.clone()
    return found
