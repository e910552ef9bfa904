"""Batch norms before and after every kind of layer: the channels of a layer need not lie along the axis of the norm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import PassError
from qcompiler.frontends import capture
from qcompiler.ir.events import Record
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from tests.support.declared import check_declared
from tests.support.golden import GEOMETRY, PADDED, computes_the_same, conv, leaf, module, norm, refusals, run, shown
from tests.support.running import outputs_of

CHANNELS = 6


class Turned(nn.Module):
    """Transposes around a module."""

    def __init__(self, inner: nn.Module, first: int, second: int) -> None:
        super().__init__()
        self.inner, self.axes = inner, (first, second)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.transpose(*self.axes)).transpose(*self.axes)
        return result


def _layers() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, layer and shape of the input: as many channels as positions, where a wrong axis would go unnoticed, too."""
    kinds = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
    for rank, pair in kinds.items():
        image = (2, CHANNELS, *[CHANNELS] * rank)
        for kind in pair:
            for groups in (1, 2, CHANNELS):
                name = f"{kind.__name__}, {groups} groups"
                yield name, kind(CHANNELS, CHANNELS, 3, groups=groups, bias=groups == 2), image
                if kind is pair[0]:
                    yield f"{name}, padded", kind(CHANNELS, CHANNELS, 3, groups=groups, padding=1), image
    for rank in (2, 3, 4):
        yield f"Linear, {rank} axes", nn.Linear(CHANNELS, CHANNELS), (2, *[CHANNELS] * (rank - 1))
        if rank > 2:
            yield f"Linear, {rank} axes, other sizes", nn.Linear(5, 7), (2, *[CHANNELS] * (rank - 2), 5)
            turned = Turned(nn.Linear(CHANNELS, CHANNELS), 1, rank - 1)
            yield f"Linear, {rank} axes, turned", turned, (2, *[CHANNELS] * (rank - 1))


LAYERS = {name: (layer, shape) for name, layer, shape in _layers()}


def _norm(axes: int) -> nn.Module:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[axes](CHANNELS)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


CASES = [
    *[(name, False) for name in LAYERS],
    # A tensor with as many positions as channels can be normalized along another axis, too.
    *[(name, True) for name in LAYERS if name.endswith(("padded", "3 axes", "4 axes"))],
]


@pytest.mark.parametrize("norm_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("name", "turned"), CASES)
def test_no_batch_norm_is_left_and_no_number_changes(name: str, turned: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    norm = _norm(len(shape))
    if turned:
        norm = Turned(norm, 1, len(shape) - 1)
    model = nn.Sequential(norm, layer) if norm_first else nn.Sequential(layer, norm)
    x = torch.randn(shape)
    graph = capture(model.eval(), (x,)).module.main
    for item in (Canonicalize(), FoldBatchNorm()):
        context = PassContext()
        context.record = Record(item.name)
        item.run(graph, context)
    assert not [node for node in graph.nodes if node.op == "batch_norm"]
    with torch.no_grad():
        expected, found = model(x), outputs_of(graph, [x])[0]
    # Products of float32 in another order: 1e-6 of the largest result was seen.
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("norm_first", [True, False], ids=["before", "after"])
def test_says_which_axes_differ(norm_first: bool) -> None:
    torch.manual_seed(0)
    model = [_norm(3), nn.Linear(CHANNELS, CHANNELS)]
    graph = capture(
        nn.Sequential(*(model if norm_first else reversed(model))).eval(), (torch.randn(2, 6, 6),)
    ).module.main
    context = PassContext()
    context.record = Record("fold-batch-norm")
    FoldBatchNorm().run(graph, context)
    refused = [event.detail for event in context.record.events if event.kind == "refusal"]
    assert len(refused) == 1
    assert "on axis 2" in refused[0]


FOLDS: dict[str, tuple[list[str], list[str], str | None]] = {
    "behind a convolution": (
        [*conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED), *norm("n", "%c", "f32[N, 8, 6, 6]", 8), "%n"],
        ["%c = conv2d(%x, %c.weight, %c.bias)", "return %c"],
        None,
    ),
    "behind a transposed convolution in groups": (
        [
            leaf("w", "f32", 4, 3, 3, 3),
            "%c = conv_transpose2d(%x, %w) {stride = (2, 2), padding = (1, 1), output_padding = (1, 1), groups = 2} : f32[N, 6, 12, 12]",
            *norm("n", "%c", "f32[N, 6, 12, 12]", 6),
            "%n",
        ],
        ["%c = conv_transpose2d(%x, %w, %c.bias)", "return %c"],
        None,
    ),
    "behind a linear layer": (
        [
            '%f = reshape(%x) {shape = (dim"N", 144)} : f32[N, 144]',
            leaf("w", "f32", 5, 144),
            "%c = linear(%f, %w) : f32[N, 5]",
            *norm("n", "%c", "f32[N, 5]", 5),
            "%n",
        ],
        ["%f = reshape(%x)", "%c = linear(%f, %w, %c.bias)", "return %c"],
        None,
    ),
    "in front of a convolution without padding": (
        [*norm("n", "%x", "f32[N, 4, 6, 6]", 4), *conv("c", "%n", 8, "f32[N, 8, 4, 4]", GEOMETRY), "%c"],
        ["%c = conv2d(%x, %c.weight, %c.bias)", "return %c"],
        None,
    ),
    "in front of a padded convolution": (
        [*norm("n", "%x", "f32[N, 4, 6, 6]", 4), *conv("c", "%n", 8, "f32[N, 8, 6, 6]", PADDED), "%c"],
        ["%n_1 = conv2d(%x, %n.gain, %n.shift)", "%c = conv2d(%n_1, %c.weight)", "return %c"],
        "before the batch norm the padding would not be zero",
    ),
    "alone": (
        ["%r = relu(%x) : f32[N, 4, 6, 6]", *norm("n", "%r", "f32[N, 4, 6, 6]", 4), "%n"],
        ["%r = relu(%x)", "%n_1 = conv2d(%r, %n.gain, %n.shift)", "return %n_1"],
        None,
    ),
    "behind a layer that others read": (
        [
            *conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
            *norm("n", "%c", "f32[N, 8, 6, 6]", 8),
            "%s = add(%c, %n) : f32[N, 8, 6, 6]",
            "%s",
        ],
        [
            "%c = conv2d(%x, %c.weight)",
            "%n_1 = conv2d(%c, %n.gain, %n.shift)",
            "%s = add(%c, %n_1)",
            "return %s",
        ],
        "c also feeds s",
    ),
}


@pytest.mark.parametrize("case", FOLDS)
def test_fold_batch_norm(case: str) -> None:
    before, after, refusal = FOLDS[case]
    subject = module("canonical", *before)
    record = run(FoldBatchNorm(), subject)
    run(EliminateDeadCode(), subject)
    assert shown(subject) == after
    computes_the_same(module("canonical", *before), subject, rtol=1e-5)
    assert [refusal in text for text in refusals(record) if refusal] == ([True] if refusal else [])
    assert refusal or not refusals(record)


def test_a_batch_norm_that_learns_is_refused() -> None:
    lines_ = norm("n", "%x", "f32[N, 4, 6, 6]", 4)
    lines_[-1] = lines_[-1].replace(" : ", " {training = true} : ")
    with pytest.raises(PassError, match=r"batch statistics.*Call eval"):
        run(FoldBatchNorm(), module("canonical", *lines_, "%n"))


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        FoldBatchNorm(),
        {Stage.CANONICAL},
        establishes={"batch-norm-folded"},
        invalidates={"weight-ranges", "activation-ranges"},
    )
