"""A network of many parts, to walk through."""

import torch
import torch.nn.functional as F
from torch import nn


class Wired(nn.Module):
    """Batch norm, a depthwise and a grouped convolution, a residual sum, a gate, concatenation, pooling and flatten,
    and maps that read the same twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn1, self.relu1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.depth, self.bn2, self.act = (
            nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(8),
            nn.GELU(),
        )
        self.point, self.bn3, self.act3 = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, affine=False), nn.LeakyReLU()
        self.squeeze, self.excite = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.grouped, self.joined = nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Identity()
        self.pool, self.drop, self.head = nn.AvgPool2d(3, 2), nn.Dropout(), nn.Linear(40, 5)
        self.side = nn.Conv2d(10, 5, 2)

    def forward(self, x):
        skip = self.relu1(self.bn1(self.stem(x)))
        x = self.bn3(self.point(self.act(self.bn2(self.depth(skip)))))
        if self.gates:
            x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))) * self.scale
        x = self.act3(x + 0.5 * skip)
        x = self.joined(torch.cat([torch.tanh(self.grouped(x)), F.max_pool2d(x, 3, 2)], 1))
        return self.head(self.drop(torch.flatten(self.pool(x), 1))) + self.side(x).mean((2, 3))

    gates = False
