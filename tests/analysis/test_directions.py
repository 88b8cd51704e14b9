"""Directions as they are given, drawn and found; what a result says of them; every refusal."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from sdkernels.lab.models import mlp
from tests.engine.compare import assert_same
from tests.engine.networks import ConvNet, with_lively_batch_norm

CHANNELS = {"relu1": 9, "relu2": 8}


@pytest.fixture
def model() -> nn.Module:
    return mlp(6, (9, 8), 4, seed=0).double().eval()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 4, (40,), generator=generator)


def activations(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: found.append(out.clone()))
    with torch.no_grad():
        model(inputs.clone())
    handle.remove()
    return found[0]


# Random directions.


@pytest.mark.parametrize("channels", [1, 2, 7, 64, 513])
def test_a_random_rotation_is_orthonormal(channels):
    rotation = sd.random_directions(channels, seed=3)
    assert rotation.dtype == torch.float64
    assert rotation.shape == (channels, channels)
    assert (rotation @ rotation.t() - torch.eye(channels).double()).abs().max() < 1e-12


def test_random_directions_go_by_the_seed_alone():
    """That the global random state is neither read nor written, every test sees."""
    first = sd.random_directions(12, seed=5)
    assert torch.equal(first, sd.random_directions(12, seed=5))
    assert not torch.allclose(first, sd.random_directions(12, seed=6))
    torch.testing.assert_close(first[:4], sd.random_directions(12, 4, seed=5), rtol=0, atol=1e-13)


def test_random_rotations_are_uniform():
    """By the trace, whose mean is 0 and variance 1 over the orthogonal group (3 rows or more), and by single entries,
    which have mean 0 and variance 1 / C. Without the signs, the diagonal of a QR factor is of one sign."""
    rotations = torch.stack([sd.random_directions(4, seed=seed) for seed in range(4000)])
    traces = rotations.diagonal(dim1=1, dim2=2).sum(1)
    within = 5 / math.sqrt(len(rotations))  # five standard errors
    assert abs(float(traces.mean())) < within
    assert abs(float(traces.var()) - 1) < 2 * within
    assert float(rotations.mean(0).abs().max()) < within / 2
    assert float((rotations.square().mean(0) - 1 / 4).abs().max()) < within / 2
    assert abs(float(torch.linalg.det(rotations).mean())) < within  # as many reflections as proper rotations


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "channels=0 must be at least 1"),
        ((2.0,), TypeError, "channels is a float; give an int"),
        ((3, 4), ValueError, "count=4 must be within 1..3"),
        ((3, 0), ValueError, "count=0 must be within 1..3"),
        ((3, 2, -1), ValueError, "seed=-1 must be at least 0"),
        ((3, 2, True), TypeError, "seed is a bool; give an int"),
    ],
)
def test_random_directions_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        sd.random_directions(*arguments)


# Principal directions.


def expected_principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows [M, C], by numpy, each with its largest component positive."""
    variances, vectors = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True))
    directions = vectors[:, ::-1].T
    largest = np.abs(directions).argmax(1)
    return directions * np.sign(directions[np.arange(len(largest)), largest])[:, None], variances[::-1]


@pytest.mark.parametrize("batch_size", [256, 7])
@pytest.mark.parametrize("layer", ["conv2", "fc1"])
def test_principal_directions_are_those_of_numpy(layer, batch_size, seeds_torch):
    """Of maps over examples and positions."""
    model, inputs = with_lively_batch_norm(ConvNet()), torch.randn(30, 2, 6, 6).double()
    rows = activations(model, layer, inputs)
    directions, variances = expected_principal(rows.movedim(1, -1).flatten(0, -2).numpy())
    found = sd.principal_directions(model, layer, (inputs, torch.zeros(30).long()), batch_size=batch_size)
    np.testing.assert_allclose(found.variances, variances, rtol=1e-10, atol=1e-12)
    varies = variances > 1e-9  # else any direction would do
    assert varies.sum() >= 4
    np.testing.assert_allclose(found.directions[varies], directions[varies], atol=1e-8)


def test_principal_directions_over_a_loader_and_some_of_them(model, data):
    every = sd.principal_directions(model, "relu1", data)
    some = sd.principal_directions(model, model.relu1, DataLoader(TensorDataset(*data), batch_size=11), 3)
    torch.testing.assert_close(some.directions, every.directions[:3], rtol=0, atol=1e-10)
    torch.testing.assert_close(some.variances, every.variances[:3])


def test_a_large_mean_takes_no_digits(data, seeds_torch):
    """The scatter is about the mean, not a difference of large sums."""
    shifted = nn.Sequential(nn.Identity(), nn.Linear(6, 4)).double().eval()
    near = sd.principal_directions(shifted, "0", data)
    far = sd.principal_directions(shifted, "0", (data[0] + 1e6, data[1]), batch_size=7)
    torch.testing.assert_close(far.variances, near.variances, rtol=1e-8, atol=0)


def test_where_nothing_varies_the_directions_are_units(seeds_torch):
    """Four of six units are constant: their directions are themselves, in order, at any batch size."""
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 4)).double().eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.tensor([[0.3, 0, 2, 0, -7, 0]]).repeat(20, 1).double()
    inputs[:, [1, 3]] = torch.randn(20, 2, dtype=torch.float64, generator=generator)
    for batch_size in (256, 3):
        found = sd.principal_directions(model, "0", (inputs, torch.zeros(20).long()), batch_size=batch_size)
        assert found.variances[2:].tolist() == [0] * 4
        torch.testing.assert_close(found.directions[2:], torch.eye(6).double()[[0, 2, 4, 5]])
    still = sd.principal_directions(model, "0", (inputs[:1], torch.zeros(1).long()))
    torch.testing.assert_close(still.directions, torch.eye(6).double())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model is a int; give a torch.nn.Module"),
        ({"layer": ["relu1", "relu2"]}, TypeError, "layer is a list; give one dotted name or one module"),
        ({"layer": "relu9"}, ValueError, "no layer 'relu9'"),
        ({"count": 10}, ValueError, "count=10 must be within 1..9"),
        ({"data": (torch.zeros(0, 6).double(), torch.zeros(0).long())}, ValueError, "data is empty"),
        (
            {"data": (torch.full((4, 6), math.nan).double(), torch.zeros(4).long())},
            ValueError,
            "layer 'relu1': 36 of 36 activations of a batch are not finite",
        ),
    ],
)
def test_principal_directions_refuses(model, data, change, error, message):
    arguments = {"model": model, "layer": "relu1", "data": data} | change
    with pytest.raises(error, match=message):
        sd.principal_directions(**arguments)


def test_principal_directions_refuses_train_mode(model, data):
    with pytest.raises(ValueError, match="train mode"):
        sd.principal_directions(model.train(), "relu1", data)


# What a call gives.


def test_alone(model, data):
    result = sd.ablate_directions(model, list(CHANNELS), data, directions="random", seed=4)
    assert isinstance(result, sd.UnitImportance)
    assert result.unit_counts == (9, 8)
    assert result.seed == 4
    assert list(result.directions) == list(CHANNELS)
    assert torch.equal(result.directions["relu1"], sd.random_directions(9, seed=4))
    assert result.top(3).shape == (3,)
    table = result.to_pandas()
    assert table["layer"].tolist() == ["relu1"] * 9 + ["relu2"] * 8
    assert table["unit"].tolist() == [*range(9), *range(8)]


def test_orders(model, data):
    rows = {layer: sd.random_directions(c, 3) for layer, c in CHANNELS.items()}
    curve = sd.ablate_directions(model, list(CHANNELS), data, directions=rows, orders=4, points="all", seed=2)
    assert isinstance(curve, sd.AblationCurve)
    assert curve.correct.shape == (4, 7)
    assert (curve.correct[:, 0] == curve.baseline_sums["accuracy"]).all()
    assert len(curve.correct[:, -1].unique()) == 1
    of_units = sd.ablate(model, "relu2", data, units=[[]])
    assert torch.equal(curve.baseline_sums["accuracy"], of_units.baseline_sums["accuracy"])
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(curve.orders[0], torch.randperm(6, generator=generator))
    score = torch.arange(6.0)
    by_score = sd.ablate_directions(
        model, list(CHANNELS), data, directions=rows, orders=(score, "descending"), points=[0, 2]
    )
    assert by_score.orders.tolist() == [[5, 4, 3, 2, 1, 0]]
    assert by_score.points.tolist() == [0, 2]
    assert curve.auc().shape == (4,)


def test_subspaces(model, data):
    listed = sd.ablate_directions(model, "relu1", data, directions="principal", subspaces=[[], [0], [3, 5], range(9)])
    assert isinstance(listed, sd.AblationScores)
    assert listed.seed is None
    assert listed.units.sum(1).tolist() == [0, 1, 2, 9]
    masks = torch.zeros(4, 9, dtype=torch.bool)
    for row, chosen in enumerate(([], [0], [3, 5], range(9))):
        masks[row, list(chosen)] = True
    assert_same(sd.ablate_directions(model, "relu1", data, directions="principal", subspaces=masks), listed)


def test_all_directions_at_zero_is_a_layer_of_zeros(model, data):
    """And at the mean a layer that says the same of every example."""
    everything = {"directions": "random", "subspaces": [range(9)]}
    for value in (0.0, "mean"):
        by_directions = sd.ablate_directions(model, "relu1", data, value=value, **everything)
        by_units = sd.ablate(model, "relu1", data, units=[range(9)], value=value)
        assert torch.equal(by_directions.correct, by_units.correct)
        torch.testing.assert_close(by_directions.loss, by_units.loss, rtol=1e-10, atol=0)


def test_principal_directions_are_those_of_the_value_data(model, data):
    other = data[0][:13] * 2 + 1, data[1][:13]
    result = sd.ablate_directions(model, "relu1", data, directions="principal", value="mean", value_data=other)
    assert torch.equal(result.directions["relu1"], sd.principal_directions(model, "relu1", other).directions)


def test_a_dict_of_kinds(model, data):
    own = sd.random_directions(8, 2, seed=9)
    result = sd.ablate_directions(model, list(CHANNELS), data, directions={"relu1": "principal", "relu2": own})
    assert result.unit_counts == (9, 2)
    assert torch.equal(result.directions["relu2"], own)
    assert torch.equal(result.directions["relu1"], sd.principal_directions(model, "relu1", data).directions)


@pytest.mark.parametrize("family", [{}, {"orders": 2}, {"subspaces": [[0, 1]]}], ids=str)
def test_saved_and_read(model, data, tmp_path, family):
    result = sd.ablate_directions(model, list(CHANNELS), data, directions="random", **family)
    result.save(tmp_path / "result.npz")
    assert_same(type(result).load(tmp_path / "result.npz"), result)
    again = type(result).load(tmp_path / "result.npz")
    assert all(torch.equal(again.directions[layer], result.directions[layer]) for layer in CHANNELS)


def test_tolerance_stops_early(model, data):
    many = data[0].repeat(200, 1), data[1].repeat(200)
    options = {"directions": "random", "tolerance": 0.05, "orders": 2, "points": 3}
    curve = sd.ablate_directions(model, "relu1", many, **options)
    assert curve.auc_bounds.shape == (2, 2)
    assert sd.ablate_directions(model, "relu1", many, tolerance_of="accuracy", **options).bounds.shape == (2, 3, 2)
    alone = sd.ablate_directions(model, "relu1", many, directions="random", tolerance=0.05)
    assert alone.bounds.shape == (9, 2)


# Orthonormality.


def test_exact_rows_stay_as_they_are(model, data):
    rows = sd.random_directions(9, 4, seed=1)
    result = sd.ablate_directions(model, "relu1", data, directions=rows, orders=2)
    assert torch.equal(result.directions["relu1"], rows)


def test_rounded_rows_move_least(model, data):
    """Those of the polar factor, which no orthonormal rows are nearer to."""
    exact = sd.random_directions(9, 5, seed=1)
    rounded = (exact + 1e-6 * sd.random_directions(9, 5, seed=2)).float()
    result = sd.ablate_directions(model, "relu1", data, directions=rounded, orders=2)
    used = result.directions["relu1"]
    assert (used @ used.t() - torch.eye(5).double()).abs().max() < 1e-12
    values, vectors = np.linalg.eigh((rounded.double() @ rounded.double().t()).numpy())
    polar = vectors @ np.diag(values**-0.5) @ vectors.T @ rounded.double().numpy()
    np.testing.assert_allclose(used, polar, atol=1e-12)
    assert (used - rounded).norm() <= (exact - rounded).norm()


def test_alone_unit_length_is_enough(model, data):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, 9, dtype=torch.float64, generator=generator)  # more than channels
    rows /= rows.norm(dim=1, keepdim=True)
    together = sd.ablate_directions(model, "relu1", data, directions=rows)
    each = [sd.ablate_directions(model, "relu1", data, directions=row[None]) for row in rows]
    assert together.correct.tolist() == [int(one.correct) for one in each]
    torch.testing.assert_close(together.loss, torch.cat([one.loss for one in each]), rtol=1e-10, atol=0)


def test_orthonormalize_keeps_order_and_side(model, data):
    generator = torch.Generator().manual_seed(1)
    rows = 3 * torch.randn(4, 9, dtype=torch.float64, generator=generator)
    result = sd.ablate_directions(model, "relu1", data, directions=rows, orders=2, orthonormalize=True)
    kept: list[Tensor] = []
    for row in rows:
        left = row - sum((row @ q) * q for q in kept) if kept else row
        kept.append(left / left.norm())
    torch.testing.assert_close(result.directions["relu1"], torch.stack(kept), rtol=0, atol=1e-12)


# Refusals.

EYE = torch.eye(9).double()
_BENT = EYE.clone()
_BENT[5, 2] = 0.3
_BENT[5] /= _BENT[5].norm()
_LONG = EYE.clone()
_LONG[4] *= 2
_ZERO = EYE.clone()
_ZERO[3] = 0
_NAN = EYE.clone()
_NAN[6, 1] = math.nan
_TWICE = torch.cat([EYE[:2], EYE[:1] + EYE[1:2]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"directions": "principle"},
            ValueError,
            "directions='principle' for layer 'relu1': the words are 'random'",
        ),
        ({"directions": 3}, TypeError, r"directions for layer 'relu1' is a int; give a tensor \[K, 9\]"),
        ({"directions": {"relu2": "random"}}, ValueError, r"dict of \['relu2'\]; it must name the layers \['relu1'\]"),
        ({"directions": {"relu1": None}}, TypeError, "directions for layer 'relu1' is a NoneType"),
        ({"directions": torch.eye(8)}, ValueError, r"layer 'relu1' \[8, 8\] must be \[K, 9\]"),
        ({"directions": torch.eye(9, 2)}, ValueError, r"\[9, 2\] must be .* give directions.T"),
        ({"directions": torch.zeros(0, 9)}, ValueError, r"\[0, 9\] must be \[K, 9\]: a row a direction, at least one"),
        ({"directions": torch.ones(9)}, ValueError, r"\[9\] must be \[K, 9\]"),
        ({"directions": EYE.bool()}, ValueError, "torch.bool; give real numbers"),
        ({"directions": EYE * 1j}, ValueError, "complex128; give real numbers"),
        ({"directions": _ZERO}, ValueError, r"layer 'relu1' \[9, 9\]: row 3 is zero \(1 of 9 rows\)"),
        ({"directions": _NAN}, ValueError, r"layer 'relu1' \[9, 9\]: row 6 is not finite"),
        ({"directions": _LONG}, ValueError, "row 4 has length 2, and must have length 1 to within 0.0001; divide"),
        ({"directions": _LONG, "orders": 2}, ValueError, "row 4 has length 2"),
        (
            {"directions": _BENT, "orders": 2},
            ValueError,
            "rows 2 and 5 are not orthogonal.* 0.287.*orthonormalize=True",
        ),
        ({"directions": _BENT, "subspaces": [[0]]}, ValueError, "rows 2 and 5 are not orthogonal"),
        ({"directions": torch.cat([EYE, EYE[:1]]), "orders": 2}, ValueError, "10 directions of 9 channels cannot be"),
        ({"directions": _TWICE, "orthonormalize": True}, ValueError, "row 2 is linearly dependent on the rows before"),
        (
            {"directions": torch.cat([EYE, EYE[:1]]), "orthonormalize": True},
            ValueError,
            r"row 9 is linearly dependent on the rows before it \(1 of 10 rows are\)",
        ),
        ({"directions": EYE, "orders": 2, "subspaces": [[0]]}, ValueError, "give one, or neither"),
        (
            {"directions": EYE, "subspaces": [[9]]},
            ValueError,
            r"subspaces, .* directions: units\[0\] names",
        ),
        ({"directions": EYE[:4], "subspaces": [[4]]}, ValueError, r"0\.\.3"),
        ({"directions": EYE, "subspaces": 3}, TypeError, "subspaces, whose units are directions"),
        ({"directions": EYE[:4], "orders": torch.arange(9)[None]}, ValueError, r"orders \[1, 9\] must be \[R, 4\]"),
        ({"directions": EYE, "orders": 2, "points": [10]}, ValueError, r"0\.\.9"),
        ({"directions": EYE, "tolerance_of": "loss"}, ValueError, "tolerance_of='loss'"),
        ({"directions": EYE[:4], "value": torch.zeros(9)}, ValueError, r"value \[9\] for layer 'relu1' fits neither"),
        ({"directions": EYE, "value": "median"}, ValueError, "value='median'"),
        ({"directions": EYE, "seed": 0.5}, TypeError, "seed is a float"),
        ({"directions": EYE, "method": "fast"}, ValueError, "method='fast'"),
    ],
)
def test_refusals(model, data, options, error, message):
    with pytest.raises(error, match=message):
        sd.ablate_directions(model, "relu1", data, **options)


def test_one_tensor_for_layers_of_several_widths_is_refused(model, data):
    with pytest.raises(ValueError, match=r"layer 'relu2' \[9, 9\] must be \[K, 8\]"):
        sd.ablate_directions(model, list(CHANNELS), data, directions=EYE)
