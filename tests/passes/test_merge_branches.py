"""Parallel layers become one: the graph, the numbers, and what stays apart and why."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.frontends import capture
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.merge_branches import MergeBranches
from qcompiler.session.pipeline import default_pipeline, model_as_it_is, print_pipeline
from qcompiler.targets import load_target
from qcompiler.validation.metrics import sqnr_db
from tests.support.declared import check_declared
from tests.support.golden import GEOMETRY, PADDED, computes_the_same, conv, leaf, module, refusals, run, shown
from tests.support.running import outputs_of

SHAPE = "f32[N, 4, 6, 6]"
SMALL = [leaf("b.weight", "f32", 4, 4, 1, 1), f"%b = conv2d(%x, %b.weight) {GEOMETRY}: {SHAPE}"]
LARGE = conv("a", "%x", 4, SHAPE, PADDED)


def merged(*text: str, context: PassContext | None = None) -> tuple[Module, Any]:
    before, after = module("canonical", *text), module("canonical", *text)
    record = run(MergeBranches(), after, context)
    computes_the_same(before, after, rtol=1e-5)
    return after, record


def test_a_small_kernel_is_added_to_the_middle_of_a_large_one() -> None:
    subject, record = merged(*LARGE, *SMALL, f"%s = add(%a, %b) : {SHAPE}", f"%r = relu(%s) : {SHAPE}", "%r")
    assert shown(subject) == ["%a = conv2d(%x, %a.weight)", "%r = relu(%a)", "return %r"]
    (event,) = record.events
    assert (event.node, event.detail) == ("a", "includes b, which read the same input and are added")
    assert record.metrics == {"merged": 1}
    before = module("canonical", *LARGE, *SMALL, f"%s = add(%a, %b) : {SHAPE}", "%s").tensors
    middle = before["a.weight"][:, :, 1, 1] + before["b.weight"][:, :, 0, 0]
    assert torch.equal(subject.tensors["a.weight"][:, :, 1, 1], middle)


def test_the_input_and_a_factor_of_it_are_branches_and_a_foreign_term_stays() -> None:
    text = [
        *LARGE,
        leaf("g", "f32", 4, 1, 1, 1),
        f"%n = conv2d(%x, %g) {{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1), groups = 4}} : {SHAPE}",
        f"%t = tanh(%x) : {SHAPE}",
        f"%s1 = add(%n, %t) : {SHAPE}",
        f"%s2 = add(%x, %s1) : {SHAPE}",
        f"%s3 = add(%s2, %a) : {SHAPE}",
        "%s3",
    ]
    subject, _ = merged(*text)
    assert sorted(shown(subject)) == sorted(
        ["%a = conv2d(%x, %a.weight)", "%t = tanh(%x)", "%s3 = add(%t, %a)", "return %s3"]
    )


def test_constants_of_the_sum_go_into_the_bias() -> None:
    text = [
        *LARGE,
        leaf("zero", "f32", kind="constant"),
        leaf("k", "f32", 1, 4, 1, 1),
        leaf("field", "f32", 1, 4, 6, 6),
        f"%s0 = add(%a, %zero) : {SHAPE}",
        *SMALL,
        f"%s1 = add(%s0, %b) : {SHAPE}",
        f"%s2 = add(%k, %s1) : {SHAPE}",
        f"%s3 = add(%s2, %field) : {SHAPE}",
        "%s3",
    ]
    subject, _ = merged(*text)
    assert shown(subject) == ["%a = conv2d(%x, %a.weight, %a.bias)", "%s3 = add(%a, %field)", "return %s3"]


REFUSED = {
    "other readers": ([*LARGE, *SMALL, f"%s = add(%a, %b) : {SHAPE}", "%s, %b"], ["b has other readers than the sum"]),
    "shared parameters": (
        [*LARGE, *SMALL, f"%s = add(%a, %b) : {SHAPE}", f"%c = conv2d(%s, %b.weight) {GEOMETRY}: {SHAPE}", "%c"],
        ["another layer uses the parameters of b"],
    ),
    "windows at other places": (
        [
            *LARGE,
            leaf("b.weight", "f32", 4, 4, 3, 3),
            f"%b = conv2d(%x, %b.weight) {{stride = (1, 1), padding = (2, 2, 2, 2), dilation = (2, 2)}} : {SHAPE}",
            f"%s = add(%a, %b) : {SHAPE}",
            "%s",
        ],
        ["the windows of a and b do not fit into one window"],
    ),
    "more work": (
        [
            *SMALL,
            leaf("d.weight", "f32", 4, 1, 3, 3),
            f"%d = conv2d(%x, %d.weight) {{stride = (1, 1), padding = (1, 1, 1, 1), dilation = (1, 1), groups = 4}} : {SHAPE}",
            f"%s = add(%b, %d) : {SHAPE}",
            "%s",
        ],
        ["one layer for d and b would have more weights than all of them"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_branches_stay_apart_and_say_why(case: str) -> None:
    text, reasons = REFUSED[case]
    subject, record = merged(*text)
    assert any(line.startswith("%s = add(") for line in shown(subject))
    assert refusals(record) == reasons


def test_a_factor_that_would_take_the_resolution_stays_apart_on_a_target() -> None:
    large = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) / 100
    text = [*LARGE, f"%s = add(%a, %x) : {SHAPE}", "%s"]
    subject = module("canonical", *text, tensors={"a.weight": large})
    record = run(MergeBranches(), subject, PassContext(load_target("int8_dsp")))
    assert "%s = add(%a, %x)" in shown(subject)
    (reason,) = refusals(record)
    assert reason.startswith("one grid for the weights of a and x would raise the expected noise by ")
    subject = module("canonical", *text, tensors={"a.weight": large})
    run(MergeBranches(), subject)
    assert "%s = add(%a, %x)" not in shown(subject), "without a target there is no grid"


class Sum(nn.Module):
    """A random set of branches over one input, and terms that are none."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        source = random.Random(seed)
        self.rank = source.choice([1, 2, 2, 2, 3])
        self.channels = source.choice([4, 6])
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        norms: Any = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
        stride = source.choice([1, 1, 1, 2])
        self.branches = nn.ModuleList()
        for _ in range(source.randint(1, 4)):
            kernel = source.choice([1, 3, 3, 5])
            dilation = source.choice([1, 1, 2])
            groups = source.choice([1, 1, 2, self.channels])
            layer = kinds[self.rank](
                self.channels,
                self.channels,
                kernel,
                stride=stride,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=groups,
                bias=source.random() < 0.5,
            )
            self.branches.append(nn.Sequential(layer, self._norm(norms)) if source.random() < 0.6 else layer)
        if stride == 1 and source.random() < 0.6:
            self.branches.append(self._norm(norms))
        self.plain = stride == 1 and source.random() < 0.4
        self.order = list(range(len(self.branches)))
        source.shuffle(self.order)

    def _norm(self, norms: Any) -> nn.Module:
        norm: nn.BatchNorm2d = norms[self.rank](self.channels)
        state = norm.state_dict()
        for name, tensor in state.items():
            if name in ("weight", "running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_()
        return norm

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        result: Tensor | None = x if self.plain else None
        for index in self.order:
            term = self.branches[index](x)
            result = term if result is None else result + term
        assert result is not None
        return result


def folded(model: nn.Module, x: Tensor) -> Module:
    subject: Module = capture(model.eval(), (x,)).module
    for item in (Canonicalize(), EliminateDeadCode(), FoldBatchNorm(), EliminateDeadCode()):
        run(item, subject)
    return subject


@pytest.mark.parametrize("seed", range(60))
def test_random_branches_give_the_same_numbers(seed: int) -> None:
    model = Sum(seed).eval()
    x = torch.randn(2, model.channels, *[7] * model.rank)
    subject = folded(model, x)
    count = sum(node.op.startswith("conv") for node in subject.main.nodes)
    record = run(MergeBranches(), subject)
    with torch.no_grad():
        wanted = model(x)
    (found,) = outputs_of(subject.main, [x])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    left = sum(node.op.startswith("conv") for node in subject.main.nodes)
    assert (left < count or model.plain) if record.metrics["merged"] else left == count


def test_most_random_branches_are_merged() -> None:
    counts = []
    for seed in range(60):
        model = Sum(seed).eval()
        subject = folded(model, torch.randn(2, model.channels, *[7] * model.rank))
        counts.append(run(MergeBranches(), subject).metrics["merged"])
    assert sum(bool(count) for count in counts) > 35


def test_linear_layers_of_one_input_are_branches() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.a(x) + self.b(x) + self.norm(x)
            return result

    torch.manual_seed(0)
    model = Twice().eval()
    x = torch.randn(5, 6)
    subject = folded(model, x)
    run(MergeBranches(), subject)
    assert [line for line in shown(subject) if "linear" in line or "conv" in line] == [
        "%a = linear(%x, %a.weight, %a.bias)"
    ]
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(subject.main, [x])[0], model(x), rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    """RepVGG's block in training: 3x3, 1x1 and the input, each with a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.small = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.large(x) + self.small(x) + self.norm(x))


def _trained(model: nn.Module, batches: list[Tensor]) -> Iterator[Tensor]:
    for module_ in model.modules():
        if isinstance(module_, nn.BatchNorm2d):
            module_.momentum = None  # the mean over all batches
            nn.init.uniform_(module_.weight, 0.5, 1.5)
            nn.init.normal_(module_.bias, 0.0, 0.3)
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    model.eval()
    yield from batches


@pytest.mark.parametrize(("target", "most"), [("int8_dsp", 15), ("int8_dsp_per_channel", 10)])
def test_a_network_of_branches_has_fewer_layers_and_no_more_noise(target: str, most: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *[Block(16) for _ in range(6)], nn.Conv2d(16, 8, 1))
    data = list(_trained(model, [torch.randn(16, 3, 12, 12) for _ in range(4)]))
    x = torch.randn(32, 3, 12, 12)
    with torch.no_grad():
        wanted = model(x)
    found = qcompiler.compile(model, target, calibration_data=data, effort="fast")
    text = print_pipeline(default_pipeline("fast")).replace("merge-branches, ", "")
    apart = qcompiler.compile(model, target, calibration_data=data, pipeline=text, verify="off")
    counts = [
        [item.op for item in compiled.artifact.program.program.instructions].count("int_conv2d")
        for compiled in (found, apart)
    ]
    assert counts[0] < most
    assert counts[1] == 20
    results: list[Any] = [found.run(x), apart.run(x)]
    assert sqnr_db(wanted, results[0]) > sqnr_db(wanted, results[1]) - 0.3


def test_data_free_statistics_are_those_of_the_sum() -> None:
    torch.manual_seed(0)
    model = Block(4)
    list(_trained(model, [torch.randn(16, 4, 6, 6)]))
    subject = folded(model, torch.randn(2, 4, 6, 6))
    norms: list[Any] = [model.large[1], model.small[1], model.norm]
    run(MergeBranches(), subject)
    (layer,) = (node for node in subject.main.nodes if node.op == "conv2d")
    mean, std = subject.tensors[layer.text("statistics")]
    torch.testing.assert_close(mean, torch.stack([norm.bias.data for norm in norms]).sum(0))
    torch.testing.assert_close(std, torch.stack([norm.weight.data.square() for norm in norms]).sum(0).sqrt())


def test_a_merged_layer_learns_without_a_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(8), nn.Conv2d(8, 4, 1))
    data = list(_trained(model, [torch.randn(16, 3, 6, 6) for _ in range(2)]))
    learns = qcompiler.prepare_qat(model, "int8_dsp_per_channel", example_inputs=data[0], calibration_data=data)
    learns.train()
    learns(data[0]).square().mean().backward()
    ops = [item.op for item in qcompiler.compile(learns.eval()).artifact.program.program.instructions]
    assert ops.count("int_conv2d") < 5


def test_given_ranges_of_the_model_belong_to_its_branches() -> None:
    passes = default_pipeline("default")
    assert any(isinstance(item, MergeBranches) for item in passes)
    assert not any(isinstance(item, MergeBranches) for item in model_as_it_is(passes))


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        MergeBranches(),
        {Stage.CANONICAL},
        requires={"batch-norm-folded"},
        invalidates={"weight-ranges", "activation-ranges"},
    )
