"""Normalizations of inputs: exact in real numbers at every position, and kept where they have less noise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qcompiler.calibration.statistics import center_of
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.passes.base import PassContext
from qcompiler.passes.fold_normalization import BORDER, FOLDED, MORE_NOISE, SHIFT_STAYS, FoldNormalization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.merge_branches import MergeBranches
from qcompiler.session.pipeline import default_pipeline, model_as_it_is, training_passes
from qcompiler.targets import load_target
from tests.support.golden import GEOMETRY, PADDED, computes_the_same, conv, leaf, module, refusals, run, shown

X = "%x : f32[N, 3, 6, 6]"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
NORMALIZED = [
    leaf("mean", "f32", 3, 1, 1),
    leaf("factor", "f32", 3, 1, 1),
    "%s = sub(%x, %mean) : f32[N, 3, 6, 6]",
    "%n = mul(%s, %factor) : f32[N, 3, 6, 6]",
]
TENSORS = {"mean": MEAN, "factor": 1 / STD}


def pixels(channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, channels, 6, 6), generator=generator) / 255


def folded(
    *text: str,
    tensors: dict[str, Tensor] | None = None,
    inputs: str = X,
    x: Tensor | None = None,
    target: str | None = None,
) -> tuple[Module, Record]:
    before, after = (module("canonical", *text, inputs=inputs, tensors=dict(tensors or TENSORS)) for _ in range(2))
    samples = [] if x is None else [[x]]
    context = PassContext(samples=samples, target=None if target is None else load_target(target))
    record = run(FoldNormalization(), after, context)
    computes_the_same(before, after, rtol=1e-5)
    return after, record


def kernel(name: str, geometry: str, outputs: int = 4) -> list[str]:
    """A convolution of %n, 3x3, with or without padding."""
    size = 6 if geometry == PADDED else 4
    return conv(name, "%n", outputs, f"f32[N, {outputs}, {size}, {size}]", geometry, inputs=3)


def test_mean_and_deviation_go_into_weight_and_bias() -> None:
    subject, record = folded(*NORMALIZED, *kernel("a", GEOMETRY), "%a")
    assert "%a = conv2d(%x, %a.weight, %a.bias)" in shown(subject)
    assert [event.code for event in record.events] == [FOLDED.code]
    (layer,) = (node for node in subject.main.nodes if node.op == "conv2d")
    torch.testing.assert_close(center_of(layer), MEAN.flatten().double(), rtol=1e-6, atol=0.0)


def test_padding_becomes_a_border_of_each_mean() -> None:
    subject, record = folded(*NORMALIZED, *kernel("a", PADDED), "%a", x=pixels())
    borders = [node for node in subject.main.nodes if node.op == "pad"]
    assert [node.number("value") for node in borders] == pytest.approx(MEAN.flatten().tolist())
    (layer,) = (node for node in subject.main.nodes if node.op == "conv2d")
    assert not any(layer.integers("padding"))
    assert {event.code for event in record.events} == {BORDER.code, FOLDED.code}


def test_one_mean_is_one_border() -> None:
    tensors = {"mean": torch.full((3, 1, 1), 0.5), "factor": torch.tensor(2.0).expand(3, 1, 1)}
    subject, _ = folded(*NORMALIZED, *kernel("a", PADDED), "%a", x=pixels(), tensors=tensors)
    ops = [node.op for node in subject.main.nodes if not node.definition.has("leaf")]  # type: ignore[arg-type]
    assert ops.count("pad") == 1
    assert "concat" not in ops


def test_a_border_outside_of_the_inputs_leaves_the_subtraction() -> None:
    tensors = {"mean": MEAN - 3.0, "factor": 1 / STD}
    subject, record = folded(*NORMALIZED, *kernel("a", PADDED), "%a", x=pixels(), tensors=tensors)
    assert "%a = conv2d(%s_1, %a.weight)" in shown(subject)
    note = next(event for event in record.events if event.code == SHIFT_STAYS.code)
    assert "outside of the range of x" in note.detail


def test_without_samples_no_border_is_known_to_fit() -> None:
    _, record = folded(*NORMALIZED, *kernel("a", PADDED), "%a")
    assert SHIFT_STAYS.code in {event.code for event in record.events}


def test_channels_last_and_channels_in_another_order() -> None:
    """Bytes of a camera as blue, green, red with channels last."""
    text = [
        leaf("f", "f32", kind="constant"),
        leaf("mean", "f32", 3),
        "%a0 = mul(%x, %f) : f32[N, 6, 6, 3]",
        "%a1 = sub(%a0, %mean) : f32[N, 6, 6, 3]",
        "%p = permute(%a1) {axes = (0, 3, 1, 2)} : f32[N, 3, 6, 6]",
        "%n = gather(%p) {axis = 1, indices = (2, 1, 0)} : f32[N, 3, 6, 6]",
        *kernel("a", GEOMETRY),
        "%a",
    ]
    tensors = {"f": torch.tensor(1 / 255), "mean": MEAN.flatten()}
    subject, _ = folded(*text, tensors=tensors, inputs="%x : f32[N, 6, 6, 3]")
    (layer,) = (node for node in subject.main.nodes if node.op == "conv2d")
    assert layer.inputs[0].producer is not None
    assert layer.inputs[0].producer.op == "gather"
    torch.testing.assert_close(center_of(layer), 255 * MEAN.flatten().flip(0).double(), rtol=1e-6, atol=0.0)


KEPT: dict[str, Sequence[str]] = {
    "a mean image": [leaf("m", "f32", 3, 6, 6), "%n = sub(%x, %m) : f32[N, 3, 6, 6]"],
    "a computed value": ["%t = tanh(%x) : f32[N, 3, 6, 6]", leaf("m", "f32", 3, 1, 1), "%n = sub(%t, %m) : f32[N, 3, 6, 6]"],
    "no factor": [leaf("m", "f32", 3, 1, 1), "%n = mul(%x, %m) : f32[N, 3, 6, 6]"],
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_normalization_per_channel_stays(name: str) -> None:
    tensors = {"m": torch.zeros(3, 1, 1)} if name == "no factor" else {}
    subject, record = folded(*KEPT[name], *kernel("a", GEOMETRY), "%a", tensors=tensors)
    assert "%a = conv2d(%n, %a.weight)" in shown(subject)
    assert not record.events


def test_columns_of_very_different_sizes_are_kept_where_they_have_less_noise() -> None:
    scale = torch.logspace(-1, 1, 8)
    text = [
        leaf("f", "f32", 8),
        "%n = mul(%x, %f) : f32[N, 8]",
        leaf("w", "f32", 4, 8),
        "%a = linear(%n, %w) : f32[N, 4]",
        "%a",
    ]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator) * scale
    subject, record = folded(*text, tensors={"f": 1 / scale}, inputs="%x : f32[N, 8]", x=x, target="int8_dsp")
    assert "%a = linear(%n, %w)" in shown(subject), "one grid would leave the weights of large columns no code"
    assert [event.code for event in record.events if event.kind == "refusal"] == [MORE_NOISE.code]
    assert "would raise the expected noise by" in refusals(record)[0]


def test_pipelines_for_given_ranges_and_for_training_have_none() -> None:
    assert any(isinstance(item, FoldNormalization) for item in default_pipeline())
    assert not any(isinstance(item, FoldNormalization) for item in model_as_it_is(default_pipeline()))
    assert not any(isinstance(item, FoldNormalization) for item in training_passes(target=load_target("int8_dsp")))
    order = [type(item) for item in default_pipeline()]
    assert order.index(MergeBranches) < order.index(FoldNormalization) < order.index(InsertQuantizers)
