"""Functions of torch that pick, repeat or reorder elements become slices and gathers of the same elements."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qcompiler.frontends import capture, rules_indexing
from tests.support.running import outputs_of
from tests.support.spellings import RuleTests, Spelling, check_rule, image, model_of

ATEN = torch.ops.aten

SPELLED: dict[str, Spelling] = {
    "index": lambda x: ATEN.index.Tensor(x, [None, None, torch.tensor([[3], [-4]]), torch.tensor([0, 0, 2])]),
    "index_select": lambda x: x.index_select(-1, torch.tensor([3, 1, 1])),
    "flip": lambda x: x.flip(-1, 1),
    "fliplr": lambda x: x.fliplr(),
    "rot90": lambda x: torch.rot90(x, 3, (1, -1)),
    "roll": lambda x: torch.roll(x, (1, -2), (2, -1)),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: torch.tile(x, (2, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 3]), 1),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :, :1], x.shape),
    "pad": lambda x: F.pad(x, (1, 0, 0, 2), value=1.5),
    "reflection_pad1d": lambda x: ATEN.reflection_pad1d.default(x.flatten(2), [3, 2]),
    "reflection_pad2d": lambda x: ATEN.reflection_pad2d.default(x, [3, 0, 1, 2]),
    "reflection_pad3d": lambda x: ATEN.reflection_pad3d.default(x[:, None], [1, 0, 1, 2, 0, 3]),
    "replication_pad1d": lambda x: ATEN.replication_pad1d.default(x.flatten(2), [5, 1]),
    "replication_pad2d": lambda x: ATEN.replication_pad2d.default(x, [1, 0, 6, 2]),
    "replication_pad3d": lambda x: ATEN.replication_pad3d.default(x[:, None], [1, 0, 1, 2, 0, 3]),
    "pad_circular": lambda x: ATEN._pad_circular.default(x, [1, 4, 0, 3]),
}  # fmt: skip

SAME: dict[str, list[Spelling]] = {
    "pad": [lambda x: F.pad(x, (1, 2)), nn.ConstantPad2d((1, 2, 0, 0), 0.0), nn.ZeroPad2d((1, 2, 0, 0)), lambda x: F.pad(x, (1, 2, 0, 0), "constant", 0.0)],
    "reflection": [nn.ReflectionPad2d((1, 2, 3, 0)), lambda x: F.pad(x, (1, 2, 3, 0), "reflect"), lambda x: x[..., [1, 0, 1, 2, 3, 2, 1]][:, :, [3, 2, 1, 0, 1, 2, 3]]],
    "edges": [nn.ReplicationPad2d((1, 2, 0, 0)), lambda x: F.pad(x, (1, 2, 0, 0), "replicate"), lambda x: x.index_select(3, torch.tensor([0, 0, 1, 2, 3, 3, 3]))],
    "circle": [nn.CircularPad2d((1, 2, 0, 0)), lambda x: F.pad(x, (1, 2, 0, 0), "circular"), lambda x: x[..., [3, 0, 1, 2, 3, 0, 1]]],
    "indices": [lambda x: x[:, [3, 0, 0]], lambda x: x[:, torch.tensor([-1, 0, -4])], lambda x: x.index_select(1, torch.tensor([3, 0, 0])), lambda x: x[:, [3, 0, 0], ...]],
    "indices in order": [lambda x: x[:, 1:4:2], lambda x: x[:, [1, 3]], lambda x: x[:, torch.tensor([False, True, False, True])]],
    "flip": [lambda x: x.flip(1), lambda x: torch.flip(x, (-3,)), lambda x: x.fliplr(), lambda x: x[:, [3, 2, 1, 0]]],
    "roll": [lambda x: x.roll(1, -1), lambda x: torch.roll(x, 5, 3), lambda x: x.roll(-3, (3,)), lambda x: x[..., [3, 0, 1, 2]]],
    "tile": [lambda x: x.repeat(1, 1, 1, 2), lambda x: x.tile(2), lambda x: torch.tile(x, (1, 2)), lambda x: x[..., [0, 1, 2, 3, 0, 1, 2, 3]]],
    "each one twice": [lambda x: x.repeat_interleave(2, -1), lambda x: x.repeat_interleave(torch.tensor([2, 2, 2, 2]), dim=3), lambda x: x[..., [0, 0, 1, 1, 2, 2, 3, 3]]],
    "expand": [lambda x: x[:, :1].expand(-1, 4, 4, 4), lambda x: x[:, :1].expand_as(x), lambda x: x[:, :1].repeat(1, 4, 1, 1), lambda x: torch.broadcast_to(x[:, :1], x.shape)],
    "nothing": [lambda x: x, lambda x: x.flip(1).flip(1)[:, :], lambda x: x.roll(4, 2), lambda x: x.repeat(1, 1, 1, 1), lambda x: x[:, [0, 1, 2, 3]], lambda x: torch.rot90(x, 4, (2, 3))],
    "pairs": [lambda x: x[:, [0, 1, 3], [2, 3, 0]], lambda x: x.flatten(1, 2)[:, [2, 7, 12]], lambda x: x[:, torch.tensor([0, 1, -1]), torch.tensor([-2, 3, 0])]],
    "a mask of several axes": [lambda x: x[..., torch.eye(4) > 0], lambda x: x.flatten(2)[:, :, [0, 5, 10, 15]], lambda x: x.flatten(2)[:, :, ::5]],
    "half a turn": [lambda x: torch.rot90(x, 2, (2, 3)), lambda x: x.flip(3, 2)],
}  # fmt: skip

REFUSED: dict[str, tuple[Spelling, str]] = {
    "pairs around a slice": (lambda x: x[:, torch.tensor([[0], [1]]), :, torch.tensor([2, 3])], "several vectors at once"),
    "the batch": (lambda x: x.flip(0), "flip along axis 0, the batch"),
    "a roll of all elements": (lambda x: x.roll(1), "a roll over all elements"),
    "all elements twice": (lambda x: x.repeat_interleave(2), "repeat_interleave over all elements"),
    "samples twice": (lambda x: x.repeat(2, 1, 1, 1), "repeat along axis 0, the batch"),
}  # fmt: skip


class TestRules(RuleTests):
    file, spelled, same, refused = rules_indexing, SPELLED, SAME, REFUSED


def test_indices_that_depend_on_the_inputs_are_refused() -> None:
    graph = capture(model_of(lambda x: x.index_select(1, x.amax((0, 2, 3)).argmax(0, True))), image()).module.main
    reasons = [node.attributes["reason"] for node in graph.nodes if node.op == "custom"]
    assert "index_select has indices that depend on the inputs" in reasons


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 5])
def test_quarter_turns(turns: int) -> None:
    check_rule("rot90", lambda x: torch.rot90(x, turns, (3, 1)))


def test_an_expanded_operand_of_arithmetic_broadcasts_by_itself() -> None:
    graph = capture(model_of(lambda x: x * x[:, :1].expand(-1, 4, 4, 4)), image()).module.main
    assert [node.op for node in graph.nodes] == ["slice", "mul"]


def test_a_sample_is_repeated_for_the_batch() -> None:
    model = model_of(lambda x, m: torch.cat([m.weight.reshape(1, 4).repeat(x.shape[0], 1), x[:, :, 0, 0]], 1))
    (found,) = outputs_of(capture(model, image()).module.main, [image()])
    assert torch.equal(found, model(image()))
