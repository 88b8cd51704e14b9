"""The LSTM language model against the equations written out, and as analyses see it against raw hooks."""

import math

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.lab.models import NextToken, lstm_language_model

V, LAYERS = 11, ("lstm1", "lstm2", "lstm3")


def small(seed: int = 0, **options) -> nn.Module:
    return lstm_language_model(V, **{"embedding": 5, "hidden": 7, "dropout": 0.3, **options}, seed=seed)


def text(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(1))


def written_out(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits by the equations of the LSTM, gates in torch's order: input, forget, cell, output."""
    weights = model.state_dict()
    x = weights["embedding.weight"][tokens]
    for name in model.layers:
        w, u = weights[f"{name}.weight_ih_l0"], weights[f"{name}.weight_hh_l0"]
        b = weights[f"{name}.bias_ih_l0"] + weights[f"{name}.bias_hh_l0"]
        h = c = x.new_zeros(len(x), u.shape[1])
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (x[:, t] @ w.T + h @ u.T + b).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs, 1)
    return x @ weights["out.weight"].T + weights["out.bias"]


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_the_equations(tied):
    model = small(tied=tied).double().eval()
    tokens = text(4, 6)
    logits, state = model(tokens)
    assert logits.shape == (4, 6, V)
    assert len(state) == 3
    torch.testing.assert_close(logits, written_out(model, tokens), rtol=1e-12, atol=1e-12)


def test_the_state_continues_a_text():
    model, tokens = small().double().eval(), text(3, 9)
    whole, after = model(tokens)
    first, state = model(tokens[:, :4])
    second, end = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    for (h, c), (own_h, own_c) in zip(after, end, strict=True):
        assert h.shape == (1, 3, 7)
        torch.testing.assert_close((h, c), (own_h, own_c), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(tokens[:, 4:])[0], second)
    with pytest.raises(ValueError, match="a state of 2 layers for a model of 3"):
        model(tokens, state[:2])


def test_initialisation():
    model = small(hidden=64, embedding=30)
    for weight in (model.embedding.weight.detach(), model.out.weight.detach()):
        assert 0.095 < float(weight.max()) < 0.1001
        assert -0.1001 < float(weight.min()) < -0.095
    assert not model.out.bias.any()
    for name in LAYERS:
        for parameter in model.get_submodule(name).parameters():
            assert 0.9 / math.sqrt(64) < float(parameter.detach().abs().max()) <= 1 / math.sqrt(64)
    same, other = small(), small(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(small().parameters(), same.parameters(), strict=True))
    assert not torch.equal(same.embedding.weight, other.embedding.weight)
    assert not torch.equal(same.lstm1.weight_hh_l0, other.lstm1.weight_hh_l0)


def test_tied_weights_are_one():
    model = small(tied=True)
    assert model.out.weight is model.embedding.weight
    assert [model.get_submodule(name).hidden_size for name in LAYERS] == [7, 7, 5]
    assert small().out.in_features == 7


def test_layers_are_modules_of_their_own():
    model = small(layers=2)
    assert [name for name, _ in model.named_children()] == ["embedding", "lstm1", "lstm2", "dropout", "out"]
    assert model.layers == ("lstm1", "lstm2")


def test_dropout_is_on_every_way_up(seeds_torch):
    model = small(dropout=0.5)
    seen = []
    model.dropout.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    torch.manual_seed(0)
    model(text(2, 4))
    assert [before.shape[-1] for before, _ in seen] == [5, 7, 7, 7]
    for before, after in seen:
        kept = after != 0
        assert 0 < int(kept.sum()) < kept.numel()
        torch.testing.assert_close(after[kept], 2 * before[kept])


@pytest.mark.parametrize("name", ["embedding", "hidden", "layers"])
def test_no_size_below_one(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        small(**{name: 0})


def test_next_token_is_the_last_position():
    model, tokens = small().eval(), text(6, 5)
    logits = NextToken(model).eval()(tokens)
    assert logits.shape == (6, V)
    torch.testing.assert_close(logits, model(tokens)[0][:, -1])


@pytest.mark.parametrize("layers", [LAYERS, ("lstm2",)], ids=["all", "one"])
def test_ablation_of_lstm_layers_is_that_of_hooks(layers):
    model = NextToken(small().double()).eval()
    stream = text(40, 6)
    tokens, following = stream[:, :-1], stream[:, -1]
    names = [f"model.{layer}" for layer in layers]
    curve = sd.cumulative_ablation(
        model, names, (tokens, following), select=0, orders=2, points="all", precision="float64", seed=0
    )
    assert curve.unit_counts == (7,) * len(layers)
    for r, order in enumerate(curve.orders):
        for t, point in enumerate(curve.points):
            masks = torch.ones(len(layers), 7, dtype=torch.float64)
            masks.view(-1)[order[:point]] = 0
            handles = [
                model.get_submodule(name).register_forward_hook(lambda _m, _i, out, mask=mask: (out[0] * mask, out[1]))
                for name, mask in zip(names, masks, strict=True)
            ]
            with torch.no_grad():
                logits = model(tokens)
            for handle in handles:
                handle.remove()
            assert int(curve.correct[r, t]) == int((logits.argmax(1) == following).sum())
            assert float(curve.loss[r, t]) == pytest.approx(float(nn.functional.cross_entropy(logits, following)))
    assert len({float(loss) for loss in curve.loss.flatten()}) > 10
