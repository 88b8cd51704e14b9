"""Similarity as a result: table, plot, file, significance, what it prints."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sdkernels.analysis.similarity.result import Similarity
from sdkernels.analysis.similarity.similarity import similarity
from tests.analysis.similarity.oracle import related


@pytest.fixture(scope="module")
def found():
    a, b = related(0, 300, 5, 6)
    a = torch.cat([a, torch.ones(300, 1)], 1)
    return {method: similarity(a, b, method=method) for method in ("cca", "svcca", "pwcca", "cka")}


def test_what_it_prints(found):
    assert repr(found["cca"]) == (
        f"mean CCA {found['cca'].similarity:.4f} of 6 units (rank 5, 1 dead) and 6 units (rank 6), 300 examples"
    )
    assert repr(found["cka"]).endswith("of 6 units (1 dead) and 6 units, 300 examples")


@pytest.mark.parametrize("method", ["cca", "svcca", "pwcca", "cka"])
def test_save_and_load_keep_everything(found, method, tmp_path):
    result = found[method]
    result.save(tmp_path / "similarity.npz")
    loaded = Similarity.load(tmp_path / "similarity.npz")
    assert vars(loaded).keys() == vars(result).keys()
    for name, held in vars(result).items():
        if isinstance(held, torch.Tensor):
            assert torch.equal(getattr(loaded, name), held), name
            assert getattr(loaded, name).dtype == held.dtype, name
        else:
            assert getattr(loaded, name) == held, name
    assert loaded.settings["positions"] == "mean"
    assert loaded.versions.keys() == {"sdkernels", "torch", "numpy", "python"}
    assert [path.name for path in tmp_path.iterdir()] == ["similarity.npz"]


def test_load_refuses_other_files(tmp_path):
    (tmp_path / "text.npz").write_text("not a result")
    with pytest.raises(ValueError, match="not a saved Similarity"):
        Similarity.load(tmp_path / "text.npz")


def test_to_pandas(found):
    table = found["pwcca"].to_pandas()
    assert list(table.columns) == ["correlation", "weight"]
    np.testing.assert_array_equal(table.correlation, found["pwcca"].correlations)
    np.testing.assert_array_equal(table.weight, found["pwcca"].weights)
    assert list(found["cca"].to_pandas().columns) == ["correlation"]
    assert found["cka"].to_pandas().to_dict("list") == {"method": ["cka"], "similarity": [found["cka"].similarity]}


@pytest.mark.parametrize("method", ["cca", "svcca", "pwcca"])
def test_plot(found, method):
    figure = Figure()
    ax = found[method].plot(figure.subplots())
    curve, mean = ax.lines
    np.testing.assert_array_equal(curve.get_ydata(), found[method].correlations)
    np.testing.assert_array_equal(curve.get_xdata(), range(1, 1 + len(found[method].correlations)))
    assert set(mean.get_ydata()) == {found[method].similarity}
    bars = [patch.get_height() for other in figure.axes if other is not ax for patch in other.patches]
    assert bars == ([] if method != "pwcca" else found[method].weights.tolist())


def test_significant(found):
    """The planted directions are three."""
    assert found["cca"].significant().count == 3
    assert found["cca"].significant(0.999999).count > 3


def test_cka_has_no_correlations(found):
    with pytest.raises(ValueError, match=r"cka is one number.*no canonical correlations to plot"):
        found["cka"].plot()
    with pytest.raises(ValueError, match="no canonical correlations to test for significance"):
        found["cka"].significant()


def test_it_is_frozen(found):
    with pytest.raises(AttributeError):
        found["cca"].distance = 0.0
