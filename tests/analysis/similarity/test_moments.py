"""Streaming moments against moments of all rows at once: joins, offsets, order, pairs, norms, refusals."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.analysis.similarity import moments as streaming
from sdkernels.analysis.similarity.moments import FLOAT32, Moments


def blocks_of(seed, count, widths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, sum(widths), dtype=torch.float64, generator=generator)
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator) @ mixing
    x += torch.randn(count, sum(widths), dtype=torch.float64, generator=generator)
    return [block.to(dtype) for block in x.split(list(widths), 1)]


def exact(x):
    """Rows centred in extended precision, [N, C]."""
    x = x.double().numpy().astype(np.longdouble)
    return x - x.mean(0)


def seen(blocks, sizes, pairs=(), **options):
    moments = Moments([block.shape[1] for block in blocks], pairs, **options)
    assert sum(sizes) == len(blocks[0])
    for parts in zip(*(block.split(list(sizes)) for block in blocks), strict=True):
        moments.add(parts)
    return moments


def close(found, expected, tolerance=1e-12):
    expected = torch.from_numpy(np.asarray(expected, dtype=np.float64))
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.sampled_from([1, 3, 128]),
    st.sampled_from([1, 2, 1024]),
    st.data(),
)
def test_any_batches_any_pairs(sizes, widths, strip, at_once, data):
    """Against all rows at once in extended precision; summed in strips, and some rows at a time."""
    every = [(i, j) for i in range(len(widths)) for j in range(len(widths)) if i != j]
    pairs = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    blocks = blocks_of(sum(sizes) + len(pairs), sum(sizes), widths)
    with patch.object(streaming, "STRIP", strip), patch.object(streaming, "rows_at_once", lambda *_: at_once):
        moments = seen(blocks, sizes, pairs, row_norms=True)
    centred = [exact(block) for block in blocks]
    assert moments.count == sum(sizes)
    for i in range(len(widths)):
        close(moments.mean(i), blocks[i].numpy().astype(np.longdouble).mean(0))
    asked = {(i, i) for i in range(len(widths))} | {p for pair in pairs for p in (pair, pair[::-1])}
    for i in range(len(widths)):
        for j in range(len(widths)):
            if (i, j) in asked:
                scale = np.sqrt((centred[i] ** 2).sum() * (centred[j] ** 2).sum())
                expected = np.asarray(centred[i].T @ centred[j], dtype=np.float64)
                assert np.abs(moments.scatter(i, j).numpy() - expected).max() <= 1e-12 * scale
                norms = (centred[i] ** 2).sum(1) @ (centred[j] ** 2).sum(1)
                assert abs(float(moments.norm_products(i, j)) - norms) <= 1e-12 * scale**2
            else:
                with pytest.raises(ValueError, match="was not asked for"):
                    moments.scatter(i, j)
                with pytest.raises(ValueError, match="were not asked for"):
                    moments.norm_products(i, j)


@pytest.mark.parametrize("is_sorted", [False, True], ids=["shuffled", "sorted"])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_an_offset_of_a_million_spreads(offset, size, is_sorted):
    """Float64 has 16 digits: six go to the offset, and raw second moments would lose six more."""
    blocks = [block + offset for block in blocks_of(1, 1000, (5, 3))]
    if is_sorted:
        order = blocks[0][:, 0].argsort()
        blocks = [block[order] for block in blocks]
    sizes = [size] * (1000 // size) + ([1000 % size] if 1000 % size else [])
    moments = seen(blocks, sizes, [(0, 1)], row_norms=True)
    x, y = map(exact, blocks)
    close(moments.scatter(0), x.T @ x, 1e-13)
    close(moments.scatter(0, 1), x.T @ y, 1e-13)
    close(moments.scatter(1, 0), y.T @ x, 1e-13)
    close(moments.norm_products(0, 1), (x**2).sum(1) @ (y**2).sum(1), 1e-13)
    close(moments.norm_products(1, 1), ((y**2).sum(1) ** 2).sum(), 1e-13)


def test_an_outlier_first():
    """The first mean is far from all others."""
    blocks = blocks_of(2, 500, (3, 2))
    for block in blocks:
        block[0] += 1e4
    moments = seen(blocks, [1] * 500, [(0, 1)], row_norms=True)
    x, y = map(exact, blocks)
    close(moments.scatter(0, 1), x.T @ y, 1e-13)
    close(moments.norm_products(0, 1), (x**2).sum(1) @ (y**2).sum(1), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.bool])
def test_dtypes(dtype):
    """What was rounded stays as it was rounded: sums are of float64."""
    x = blocks_of(3, 60, (4,))[0].to(dtype)
    moments = seen([x], [25, 35])
    close(moments.scatter(0), exact(x).T @ exact(x), 1e-13)
    eps = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-23}.get(dtype, 2**-49)
    torch.testing.assert_close(moments.rounding(0), 2 * eps * x.double().mean(0).abs(), rtol=1e-12, atol=1e-25)


def test_rounding_is_the_coarsest_dtypes():
    x = torch.ones(3, 1)
    moments = Moments([1])
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        moments.add([x.to(dtype)])
        assert float(moments.rounding(0)) == 2 * (FLOAT32 if dtype == torch.float64 else 2**-7)


def test_batches_are_left_as_they_are_and_their_layout_does_not_count():
    x, y = blocks_of(4, 30, (4, 4))
    kept = x.clone()
    moments = Moments([4, 4], [(1, 0)])
    moments.add([x, y.t().contiguous().t()])
    moments.add([x, y])
    assert torch.equal(x, kept)
    close(moments.scatter(1, 0), 2 * exact(y).T @ exact(x))
    moments.add([x[:0], y[:0]])
    assert moments.count == 60


def test_in_and_out_of_inference_mode():
    x = blocks_of(5, 40, (3,))[0]
    moments = Moments([3])
    with torch.inference_mode():
        moments.add([x[:20].clone()])
    moments.add([x[20:].requires_grad_()])
    close(moments.scatter(0), exact(x.detach()).T @ exact(x.detach()))
    assert not moments.scatter(0).requires_grad


def test_kept_and_taken_over():
    """Going on from what was kept gives the same bits, and leaves what was kept alone."""
    blocks = blocks_of(6, 50, (3, 2, 2))
    pairs = [(0, 2), (1, 2)]
    whole = seen(blocks, [20, 30], pairs, row_norms=True)
    first = seen([block[:20] for block in blocks], [20], pairs, row_norms=True)
    kept = first.tensors()
    copies = {name: tensor.clone() for name, tensor in kept.items()}
    second = Moments((3, 2, 2), pairs, row_norms=True)
    second.load(kept)
    second.add([block[20:] for block in blocks])
    assert second.count == 50
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name
        assert torch.equal(kept[name], copies[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_not_finite_is_refused_and_not_seen(value, is_first):
    blocks = blocks_of(7, 10, (3, 2))
    moments = Moments([3, 2], [(0, 1)], names=["layer 'fc1'", "layer 'fc2'"])
    if not is_first:
        moments.add(blocks)
    spoilt = blocks[1].clone()
    spoilt[4, 1] = value
    with pytest.raises(ValueError, match=r"layer 'fc2' \[10, 2\]: row 4, column 1 is (nan|-?inf), 1 of 20 numbers"):
        moments.add([blocks[0], spoilt])
    moments.add(blocks)
    close(moments.scatter(0, 1), (1 if is_first else 2) * exact(blocks[0]).T @ exact(blocks[1]))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([torch.ones(3, 2)], "1 blocks for 2 widths"),
        ([torch.ones(3, 2), torch.ones(4, 1)], r"block 1 \[4, 1\] must be \[3, 1\]"),
        ([torch.ones(3, 2), torch.ones(3, 2)], r"block 1 \[3, 2\] must be \[3, 1\]"),
        ([torch.ones(3, 2, 1), torch.ones(3, 1)], r"block 0 \[3, 2, 1\] must be \[3, 2\]"),
        ([torch.ones(3, 2), torch.ones(3, 1).cfloat()], "is torch.complex64: give real numbers"),
    ],
)
def test_refuses_shapes(blocks, message):
    with pytest.raises(ValueError, match=message):
        Moments([2, 1]).add(blocks)


@pytest.mark.parametrize("pair", [(0, 2), (-1, 0)])
def test_refuses_pairs_that_do_not_exist(pair):
    with pytest.raises(ValueError, match=r"numbers must be within 0\.\.1"):
        Moments([2, 1], [pair])


def test_nothing_seen():
    with pytest.raises(ValueError, match="no examples were seen"):
        Moments([2]).scatter(0)
    with pytest.raises(ValueError, match="give a positive width"):
        Moments([2, 0])
