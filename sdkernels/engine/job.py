"""A job: a model, its sites, data and a family of configurations; and the tally of what they score."""

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from sdkernels.engine.arrays import read_arrays, write_arrays
from sdkernels.engine.batches import Batch, Batches
from sdkernels.engine.families import Family
from sdkernels.engine.graph import Graph
from sdkernels.engine.loop import Call
from sdkernels.engine.outcomes import Outcomes, unpack
from sdkernels.engine.plan import Plan
from sdkernels.engine.scores import Metric, Scores
from sdkernels.engine.sites import Site
from sdkernels.engine.values import Clamp


@dataclass(frozen=True)
class Job:
    """What is to be scored.

    Attributes:
        model: in evaluation mode.
        sites: where units are clamped.
        batches: the data.
        family: the configurations.
        clamps: for each site, what a clamped unit becomes.
        metrics: as :func:`sdkernels.engine.scores.check_metrics` gives them.
        probe: a few examples, and ``probe_logits`` [N, L] what the model gives for them.
        advance: hears of examples x configurations done; of a negative number where they are to be done again.
        outcomes: whether each prediction's being correct is kept.
        graphs: by the shape of an example, the traced models that were seen to do what the model does.
        root: the family that ``family`` is a part of, where a call is run in stages.
        chosen: which of the call's configurations the family is, int64 [k]; None: all of them.
        tf32: whether float32 products on CUDA may round to TF32.
    """

    model: nn.Module
    sites: list[Site]
    batches: Batches
    family: Family
    clamps: list[Clamp]
    metrics: Sequence[Metric]
    probe: Batch
    probe_logits: Tensor
    advance: Callable[[int], None]
    outcomes: bool = False
    graphs: dict[torch.Size, Graph] = field(default_factory=dict)
    root: Family | None = None
    chosen: Tensor | None = None
    tf32: bool = False

    @property
    def classes(self) -> int:
        """L."""
        return self.probe_logits.shape[1]

    @property
    def calls(self) -> list[Call]:
        """The sites, as hooks need to know them."""
        return [site.hooked for site in self.sites]

    def part(self, chosen: Tensor | None, family: Family) -> "Job":
        """Of some of its configurations, int64 [k], which are ``family``; None: all."""
        if chosen is None:
            return self
        return replace(self, family=family, chosen=chosen if self.chosen is None else self.chosen[chosen])

    def on(self, device: torch.device) -> "Job":
        """The same job without its data, graphs and progress, to be sent elsewhere; and there, on its device."""
        model, sites = self.model, self.sites
        if device != self.batches.device:
            model, sites = copy.deepcopy((model, sites))
            model.to(device)
        return replace(
            self,
            model=model,
            sites=sites,
            batches=self.batches.elsewhere(device),
            clamps=[clamp.on(device) for clamp in self.clamps],
            probe=self.probe.to(device),
            probe_logits=self.probe_logits.to(device),
            advance=_nobody_hears,
            graphs={},
        )


def _nobody_hears(_done: int) -> None:
    pass


class Tally:
    """What the intact model and K configurations score on some examples, which count from 0 in its outcomes.

    Args:
        job: says what is scored.
        examples: how many there will be, if that is known.
    """

    def __init__(self, job: Job, examples: int | None) -> None:
        configurations, device = job.family.configurations, job.batches.device
        outcomes = Outcomes(configurations, examples) if job.outcomes else None
        self.chosen = job.chosen
        self.intact = Scores(job.metrics, 1, job.classes, device)
        self.ablated = Scores(job.metrics, configurations, job.classes, device, outcomes)

    @property
    def examples(self) -> int:
        """N."""
        return self.intact.examples

    def add(self, other: "Tally", configurations: Tensor | None = None) -> None:
        """Add what was scored on the next examples; or, of those added last, further configurations int64 [k]."""
        which = torch.arange(len(self.ablated.sums["accuracy"])) if configurations is None else configurations
        start = self.examples
        if configurations is None or not len(configurations) or configurations[0] == 0:
            self.intact.examples += other.examples
            self.intact.class_examples += other.intact.class_examples
            for name, total in other.intact.sums.items():
                self.intact.sums[name] += total
        else:
            start -= other.examples
        for name, total in other.ablated.sums.items():
            self.ablated.sums[name].index_add_(0, which.to(total.device), total)
        if self.ablated.outcomes is not None and other.ablated.outcomes is not None:
            places = torch.arange(start, start + other.examples)
            self.ablated.outcomes.write(which, places, unpack(other.ablated.outcomes.packed, other.examples))

    def to_bytes(self) -> bytes:
        """As NumPy's ``.npz``, compressed, without pickle."""
        arrays = {
            "examples": np.array(self.examples),
            "class_examples": self.intact.class_examples.cpu().numpy(),
            **{f"intact/{name}": total.cpu().numpy() for name, total in self.intact.sums.items()},
            **{f"sums/{name}": total.cpu().numpy() for name, total in self.ablated.sums.items()},
        }
        if self.chosen is not None:
            arrays["configurations"] = self.chosen.numpy()
        if self.ablated.outcomes is not None:
            arrays["outcomes"] = self.ablated.outcomes.packed.numpy()
        file = io.BytesIO()
        write_arrays(file, arrays, compressed=True)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, job: Job, content: bytes) -> "Tally":
        """What :meth:`to_bytes` gave.

        Raises:
            ValueError: that was of another job.
        """
        arrays = {name: torch.from_numpy(array) for name, array in read_arrays(io.BytesIO(content)).items()}
        examples = int(arrays["examples"])
        tally = cls(job, examples)
        tally.intact.examples = examples
        totals = {"class_examples": tally.intact.class_examples}
        totals |= {f"intact/{name}": total for name, total in tally.intact.sums.items()}
        totals |= {f"sums/{name}": total for name, total in tally.ablated.sums.items()}
        for name, total in totals.items():
            kept = arrays[name]
            if (kept.shape, kept.dtype) != (total.shape, total.dtype):
                raise ValueError(
                    f"a tile's {name!r} is {kept.dtype} {list(kept.shape)}, and this call's {total.dtype} "
                    f"{list(total.shape)}"
                )
            total += kept.to(total.device)
        if tally.ablated.outcomes is not None:
            which, places = torch.arange(job.family.configurations), torch.arange(examples)
            tally.ablated.outcomes.write(which, places, unpack(arrays["outcomes"], examples))
        return tally


@dataclass(frozen=True)
class Outcome:
    """Sums over ``examples`` examples: of the intact model each ``[1, ...]``, of K configurations each ``[K, ...]``."""

    intact: dict[str, Tensor]
    sums: dict[str, Tensor]
    examples: int
    class_examples: Tensor  # int64 [L]
    plan: Plan
    outcomes: Tensor | None = None  # uint8 [K, ceil(N / 8)], a bit an example: whether it is correct
