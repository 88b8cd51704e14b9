"""What each example's logit loses when a unit of a layer is clamped, with the arguments that captum's users know."""

import warnings
from collections.abc import Hashable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from sdkernels.analysis.attribution_arguments import (
    Target,
    check_baselines,
    check_groups,
    check_perturbations,
    check_target,
)
from sdkernels.analysis.attribution_runs import Ready, prepared, run
from sdkernels.analysis.fingerprint import fingerprint
from sdkernels.analysis.measure import progress
from sdkernels.analysis.subject import hooks_removed, undisturbed
from sdkernels.engine.arguments import dense, flag
from sdkernels.engine.checks import PROBE_EXAMPLES, SdkernelsWarning, check_default_device
from sdkernels.engine.sites import Site, check_eval_mode, find_sites, unwrap

# Prepared runs that are kept, each for a shape of inputs, a mask and a baseline: they hold rearranged weights.
KEPT = 8


class LayerUnitAblation:
    r"""Clamp every unit of a layer alone, and see what each example's logit loses.

    .. math:: A_{nu} = f(x_n)_{y_n} - f(x_n;\, a_u \leftarrow b_u)_{y_n}

    with :math:`f` the logits, :math:`y_n` the target of example :math:`n`, :math:`a_u` all of unit :math:`u`, that is a
    feature map with all its positions, and :math:`b_u` its baseline. Positive: the unit helps the target.

    This is what ``captum.attr.LayerFeatureAblation(model, layer).attribute(x, target=y, layer_mask=m)`` gives with a
    mask ``m`` that numbers the layer's channels, ``torch.arange(C).view(1, C, 1, 1)`` for maps: captum repeats
    :math:`A_{nu}` at every position of the unit, here it stands once. Without a mask captum ablates single elements,
    which are no units. Targets may differ between examples whatever ``perturbations_per_eval`` is.

    The model is traced, and its graph held against hooks, at the first call for inputs of a shape; further calls, as
    batch after batch of a data set, go without until weights, buffers, modes, hooks or modules change.

    Args:
        model: any module that gives logits ``[N, L]`` for inputs ``[N, ...]``, in evaluation mode. It is not changed.
        layer: a dotted name or a module of ``model``. ``"relu@2"`` picks one call of a layer that fires several times.
        unit_dim: the units' dimension; by default 1 for outputs of four or more dimensions and of 1-d convolutions,
            else the last.
        select: of a layer that gives a tuple, which part holds the units: 0 for the output of an ``nn.LSTM``.

    Raises:
        TypeError: a model that is no module, several layers.

    Source:
        Morcos, Barrett, Rabinowitz, Botvinick 2018, "On the importance of single directions for generalization",
        section 2.2, for clamping units; Kokhlikyan et al. 2020, "Captum: A unified and generic model interpretability
        library for PyTorch", for the interface.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 2, bias=False)).eval()
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]]))
        >>> x = torch.tensor([[1.0, 1.0, 1.0], [2.0, -1.0, 1.0]])
        >>> sd.LayerUnitAblation(model, "0").attribute(x, target=[0, 1]).tolist()
        [[1.0, 2.0, 3.0], [-2.0, 0.0, 1.0]]
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        *,
        unit_dim: int | Mapping[str, int] | None = None,
        select: int | Mapping[str, int] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        if not isinstance(layer, (str, nn.Module)):
            raise TypeError(f"layer is a {type(layer).__name__}; give the dotted name of one layer, or its module")
        self._model, self._layer = unwrap(model), layer
        self._unit_dim, self._select = unit_dim, select
        self._seen: Hashable = None  # the model that all of this was found for
        self._sites: dict[Hashable, tuple[Site, int]] = {}  # and the number of logits, by the inputs' shape
        self._ready: dict[Hashable, Ready] = {}

    def attribute(
        self,
        inputs: Tensor,
        *,
        target: Target = None,
        layer_baselines: float | Tensor | None = 0.0,
        layer_mask: Tensor | None = None,
        perturbations_per_eval: int | Literal["auto"] = "auto",
        show_progress: bool = False,
    ) -> Tensor:
        r"""The loss of the target's logit for every example and unit.

        Args:
            inputs: ``[N, ...]``; moved to the model's device.
            target: the class :math:`y_n` of all examples, or N of them, a list or an integer tensor ``[N]``; None where
                the model gives one logit.
            layer_baselines: :math:`b_u`, what a clamped unit becomes: a number; a tensor ``[U]``, or like one example
                of the layer's output; or one by example, ``[N, ...]`` like the output.
            layer_mask: units with the same number are clamped together, and each gets what its group loses: integers
                ``[U]``, or any that broadcast to one example of the output and are constant over each unit. None: every
                unit alone.
            perturbations_per_eval: how many units share a forward pass; ``"auto"`` goes by the memory that they take.
            show_progress: a tqdm bar over examples x configurations.

        Returns:
            ``[N, U]``, of the logits' dtype, on the model's device, without gradient.

        Raises:
            ValueError, TypeError: a layer that does not exist, a model in train mode, or one that mixes examples or is
                random, no inputs, a target out of range, one missing, baselines or a mask that do not fit, non-finite
                intact activations; each says what, where and the fix.
        """
        check_default_device()
        model = self._model
        check_eval_mode(model)
        per_pass, show_progress = check_perturbations(perturbations_per_eval), flag("show_progress", show_progress)
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        x = _check_inputs(inputs).to(device)
        with torch.inference_mode(False), torch.no_grad(), undisturbed(device, tf32=False), hooks_removed(self._model):
            self._forget_another_model()
            site, classes = self._find_site(x)
            targets = check_target(target, len(x), classes, device)
            baselines = check_baselines(layer_baselines, site, len(x), device)
            groups = check_groups(layer_mask, site)
            key = (*_kind(x), per_pass, _kept(groups), None if baselines.by_example else _kept(baselines.value))
            ready = self._ready.pop(key, None)
            if ready is None or ready.probed < min(len(x), PROBE_EXAMPLES):
                ready, remarks = prepared(model, site, x, baselines, groups, per_pass)
                for remark in remarks:
                    warnings.warn(remark, SdkernelsWarning, stacklevel=2)
                self._seen = fingerprint(model)
            self._ready[key] = ready  # the last one is the one used last
            for old in list(self._ready)[:-KEPT]:
                del self._ready[old]
            with progress(show_progress, len(x), ready.family.configurations) as advance:
                lost = run(model, ready, x, targets, baselines, advance)
            return (lost if groups is None else lost[groups]).t().contiguous()

    def _forget_another_model(self) -> None:
        if self._sites and fingerprint(self._model) != self._seen:
            self._sites.clear()
            self._ready.clear()

    def _find_site(self, x: Tensor) -> tuple[Site, int]:
        """The layer's site, and the number of logits."""
        kind = _kind(x)
        if kind not in self._sites:
            probe = x[:PROBE_EXAMPLES]
            sites, logits = find_sites(self._model, [self._layer], probe, self._unit_dim, self._select)
            self._seen = fingerprint(self._model)
            self._sites[kind] = sites[0], logits.shape[1]
        return self._sites[kind]


def _check_inputs(inputs: Tensor) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs is a {type(inputs).__name__}; give one tensor [N, ...]")
    if inputs.ndim == 0 or inputs.numel() == 0:
        raise ValueError(f"inputs {list(inputs.shape)} must be [N, ...] with at least one example")
    return dense("inputs", inputs, real=False).detach()


def _kind(x: Tensor) -> tuple[Hashable, ...]:
    """What a graph depends on: all but the number of examples."""
    return x.shape[1:], x.dtype, x.device


def _kept(tensor: Tensor | None) -> Hashable:
    """Equal where tensors are."""
    return None if tensor is None else (tensor.shape, tensor.cpu().contiguous().numpy().tobytes())
