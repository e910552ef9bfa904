"""Clamps from 0 to a cap become ReLUs where equalization would stop at the cap."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.replace_relu6 import ReplaceRelu6
from tests.support.equalized import Net, image, measured, run_alike, wide


def test_relu6_is_replaced_behind_layers_only() -> None:
    torch.manual_seed(0)
    net = Net(lambda m, x: functional.relu6(m.a(functional.relu6(x)) * 5), a=nn.Conv2d(3, 4, 1))
    _, records = run_alike(net, [ReplaceRelu6()], image())
    assert [event.detail for event in records[-1].events] == ["no layer directly before it"] * 2
    net = Net(lambda m, x: m.b(functional.relu6(m.a(x))), a=wide(nn.Conv2d(3, 8, 1)), b=nn.Conv2d(8, 2, 1))
    _, records = run_alike(net, [ReplaceRelu6(), CrossLayerEqualization()], image())
    assert [event.detail for event in records[-2].events] == ["is not limited above 6"]
    assert measured(records[-1], "pairs") == 1
