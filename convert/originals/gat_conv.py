"""GATConv and GATv2Conv in plain PyTorch; attribute names are the keys of PyTorch Geometric's."""

import torch
from torch import nn
from torch.nn import functional as F


class GATConv(nn.Module):
    def __init__(self, c, d, heads=1, concat=True, self_loops=True):
        super().__init__()
        self.shape, self.concat, self.self_loops = (heads, d), concat, self_loops
        self.lin = nn.Linear(c, heads * d, bias=False)
        self.att_src, self.att_dst = (nn.Parameter(torch.zeros(1, heads, d)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(heads * d if concat else d))

    def forward(self, x, senders, receivers):
        senders, receivers = self.edges(senders, receivers, len(x))
        values = self.lin(x).unflatten(-1, self.shape)
        source, target = ((values * vector).sum(-1) for vector in (self.att_src, self.att_dst))
        scores = F.leaky_relu(source[senders] + target[receivers], 0.2)
        return self.gathered(values, scores, senders, receivers)

    def edges(self, senders, receivers, n):
        if not self.self_loops:
            return senders, receivers
        others, all = senders != receivers, torch.arange(n)
        return torch.cat([senders[others], all]), torch.cat([receivers[others], all])

    def gathered(self, values, scores, senders, receivers):
        n = len(values)
        index = receivers[:, None].expand_as(scores)
        top = torch.full((n, scores.shape[1]), -torch.inf, dtype=scores.dtype)
        top = top.scatter_reduce(0, index, scores.detach(), "amax")
        weights = (scores - top[receivers]).exp()
        total = torch.zeros_like(top).scatter_add(0, index, weights)
        weights = weights / total[receivers]
        out = torch.zeros_like(values).index_add(0, receivers, values[senders] * weights[:, :, None])
        return (out.flatten(1) if self.concat else out.mean(1)) + self.bias


class GATv2Conv(GATConv):
    def __init__(self, c, d, heads=1, concat=True, self_loops=True):
        super().__init__(c, d, heads, concat, self_loops)
        del self.lin, self.att_src, self.att_dst
        self.lin_l, self.lin_r = (nn.Linear(c, heads * d) for _ in range(2))
        self.att = nn.Parameter(torch.zeros(1, heads, d))

    def forward(self, x, senders, receivers):
        senders, receivers = self.edges(senders, receivers, len(x))
        source, target = (lin(x).unflatten(-1, self.shape) for lin in (self.lin_l, self.lin_r))
        scores = (F.leaky_relu(source[senders] + target[receivers], 0.2) * self.att).sum(-1)
        return self.gathered(source, scores, senders, receivers)


CONVS = {"gat": GATConv, "gatv2": GATv2Conv}
