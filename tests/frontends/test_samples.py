"""Results that hold one sample for the whole batch are stored once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qcompiler.frontends import capture
from qcompiler.frontends.builder import Observed
from qcompiler.frontends.samples import common_sample, repeats_samples
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import symbol
from qcompiler.ops.quantizers import leaf_tensor
from tests.support.running import outputs_of


def test_a_common_sample_is_found_in_two_runs() -> None:
    sample = torch.arange(3)[None]
    found = common_sample(sample.expand(2, 3), sample.expand(5, 3))
    assert found is not None and torch.equal(found, sample)
    assert common_sample(sample.expand(2, 3), torch.arange(15).reshape(5, 3)) is None
    assert common_sample(sample.expand(2, 3), None) is None


def test_a_result_repeats_its_operand_where_all_other_axes_agree() -> None:
    leaf = Leaf("constant", "", torch.zeros(1, 4))
    assert repeats_samples(leaf, Observed((symbol("N"), 4), torch.float32))
    assert not repeats_samples(leaf, Observed((symbol("N"), 5), torch.float32))


def test_positions_of_a_batch_are_one_sample_that_is_expanded() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(x.shape[0], 4, dtype=torch.long).cumsum(1).flip(1)

    x = torch.zeros(3, 2)
    module = capture(Positions().eval(), x).module
    node = module.main.outputs[0].made_by("expand")
    assert node is not None and leaf_tensor(node.inputs[0]).shape == (1, 4)
    (found,) = outputs_of(module.main, [torch.zeros(5, 2)])
    assert found.tolist() == [[4, 3, 2, 1]] * 5
