"""Networks of tokens: attention, class tokens, causal masks, recurrence. Units are the last dimension."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    """Two heads, written out."""

    def __init__(self, features: int, causal: int = 0) -> None:
        super().__init__()
        self.qkv, self.proj, self.scale = nn.Linear(features, 3 * features), nn.Linear(features, features), features / 2
        self.register_buffer("mask", torch.full((causal, causal), -math.inf).triu(1) if causal else None)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.scale)
        scores = scores if self.mask is None else scores + self.mask
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class _Mlp(nn.Sequential):
    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)


class _Block(nn.Module):
    def __init__(self, features: int, causal: int = 0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(features), _Attention(features, causal)
        self.norm2, self.mlp = nn.LayerNorm(features), _Mlp(features, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patch embedding by a convolution, a class token, position embeddings; the class token is classified."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 3, stride=3)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.block1, self.block2 = _Block(6), _Block(6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.block2(self.block1(x)))[:, 0])


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` among linear layers; the tokens' mean is classified."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.norm1 = nn.Linear(3, 6), nn.LayerNorm(6)
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm2, self.mlp, self.head = nn.LayerNorm(6), _Mlp(6, 8), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm2(x))).mean(dim=1))


class Gpt(nn.Module):
    """A decoder of token ids with a causal mask; its head is its embedding, and reads the last position."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocabulary, 6), nn.Embedding(5, 6)
        self.block1, self.block2, self.norm = _Block(6, causal=5), _Block(6, causal=5), nn.LayerNorm(6)
        self.register_buffer("places", torch.arange(5))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions(self.places)
        x = self.norm(self.block2(self.block1(x)))
        return F.linear(x[:, -1], self.embed.weight)


class Mixer(nn.Module):
    """Linear layers over positions, then over features, each around a shortcut: no map keeps to its own channel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.norm1, self.over_positions = nn.Linear(3, 6), nn.LayerNorm(6), _Mlp(5, 7)
        self.norm2, self.over_features, self.head = nn.LayerNorm(6), _Mlp(6, 8), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.over_positions(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.over_features(self.norm2(x))).mean(1))


class Lstm(nn.Module):
    """A recurrent classifier; the LSTM gives a tuple, whose first part a norm and a linear layer read."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(3, 5), nn.LSTM(5, 6, num_layers=2, batch_first=True)
        self.norm, self.fc, self.act, self.head = nn.LayerNorm(6), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, classes)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(x))
        return self.head(self.act(self.fc(self.norm(x)))[:, -1])
