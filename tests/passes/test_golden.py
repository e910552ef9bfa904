"""Each pass on small graphs in text: what it makes of them, and what it leaves alone and why."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import PassError, UnsupportedError
from qcompiler.ir.graph import Module
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.fuse_activations import FuseActivations
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.session.pipeline import quantization_passes
from qcompiler.targets import load_target
from tests.passes.golden import leaf, lines, module, refusals, run
from tests.support.running import outputs_of

X = "%x : f32[N, 4, 6, 6]"


def norm(name: str, source: str, type: str, channels: int) -> list[str]:
    """A batch norm called `name` and its four tensors."""
    parts = ("gamma", "beta", "mean", "var")
    tensors = [leaf(f"{name}.{part}", "f32", channels, kind="state") for part in parts]
    return [*tensors, f"%{name} = batch_norm({source}, {', '.join(f'%{name}.{p}' for p in parts)}) : {type}"]


def conv(
    name: str, source: str, out: int, type: str, attributes: str = "", inputs: int = 4, kernel: int = 3
) -> list[str]:
    weight = leaf(f"{name}.weight", "f32", out, inputs, kernel, kernel)
    return [weight, f"%{name} = conv2d({source}, %{name}.weight) {attributes}: {type}".replace("{}", "")]


CANONICAL: dict[str, tuple[list[str], list[str]]] = {
    "identity and dropout": (
        ["%a = identity(%x) : f32[N, 4, 6, 6]", "%b = dropout(%a) {p = 0.5} : f32[N, 4, 6, 6]", "%b"],
        ["return %x"],
    ),
    "reshape of a reshape": (
        [
            '%a = reshape(%x) {shape = (dim"N", 24, 6)} : f32[N, 24, 6]',
            '%b = reshape(%a) {shape = (dim"N", 144)} : f32[N, 144]',
            "%b",
        ],
        ['%b = reshape(%x) {shape = (dim"N", 144)} : f32[N, 144]', "return %b"],
    ),
    "permutations that cancel": (
        [
            "%a = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%b = permute(%a) {axes = (0, 3, 1, 2)} : f32[N, 4, 6, 6]",
            "%b",
        ],
        ["return %x"],
    ),
    "a product with a matrix": (
        [leaf("w", "f32", 6, 8), "%a = matmul(%x, %w) : f32[N, 4, 6, 8]", "%a"],
        ["%a_1 = linear(%x, %w_1) : f32[N, 4, 6, 8]", "return %a_1"],
    ),
    "a product with a matrix that is turned": (
        [
            leaf("w", "f32", 8, 6),
            "%t = permute(%w) {axes = (1, 0)} : f32[6, 8]",
            "%a = matmul(%x, %t) : f32[N, 4, 6, 8]",
            "%a",
        ],
        ["%a_1 = linear(%x, %w) : f32[N, 4, 6, 8]", "return %a_1"],
    ),
    "a matrix times a value": (
        [leaf("w", "f32", 8, 6), "%a = matmul(%w, %x) : f32[N, 4, 8, 6]", "%a"],
        [
            "%a_1 = permute(%x) {axes = (0, 1, 3, 2)} : f32[N, 4, 6, 6]",
            "%a_2 = linear(%a_1, %w) : f32[N, 4, 6, 8]",
            "%a_3 = permute(%a_2) {axes = (0, 1, 3, 2)} : f32[N, 4, 8, 6]",
            "return %a_3",
        ],
    ),
    "adaptive pooling to one": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (1, 1)} : f32[N, 4, 1, 1]", "%a"],
        ["%a_1 = mean(%x) {axes = (2, 3), keepdim = true} : f32[N, 4, 1, 1]", "return %a_1"],
    ),
    "adaptive pooling that divides": (
        ["%a = adaptive_avg_pool2d(%x) {output_size = (3, 2)} : f32[N, 4, 3, 2]", "%a"],
        ["%a_1 = avg_pool2d(%x) {kernel = (2, 3), stride = (2, 3)} : f32[N, 4, 3, 2]", "return %a_1"],
    ),
    "zero padding in front of a convolution": (
        [
            "%a = pad(%x) {pad = (0, 0, 1, 2, 0, 0, 0, 1)} : f32[N, 4, 7, 9]",
            *conv("c", "%a", 8, "f32[N, 8, 5, 7]", "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "),
            "%c",
        ],
        [
            "%c = conv2d(%x, %c.weight) {padding = (1, 2, 0, 1)} : f32[N, 8, 5, 7]",
            "return %c",
        ],
    ),
    "clamps that are something else": (
        [
            "%a = clamp(%x) {min = 0.0} : f32[N, 4, 6, 6]",
            "%b = clamp(%a) : f32[N, 4, 6, 6]",
            "%c = clamp(%b) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]",
            "%c",
        ],
        [
            "%a_1 = relu(%x) : f32[N, 4, 6, 6]",
            "%c = clamp(%a_1) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]",
            "return %c",
        ],
    ),
    "division by a constant": (
        [leaf("k", "f32", 4, 1, 1, kind="constant"), "%a = div(%x, %k) : f32[N, 4, 6, 6]", "%a"],
        ["%a_1 = mul(%x, %k) : f32[N, 4, 6, 6]", "return %a_1"],
    ),
}


def outputs(subject: Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = [[3 if not isinstance(size, int) else size for size in v.type.shape] for v in subject.main.inputs]
    return outputs_of(subject.main, [torch.randn(shape, generator=generator) for shape in shapes])


def computes_the_same(before: Module, after: Module, rtol: float) -> None:
    for old, new in zip(outputs(before), outputs(after), strict=True):
        torch.testing.assert_close(new, old, rtol=rtol, atol=rtol * float(old.abs().max()))


@pytest.mark.parametrize("case", CANONICAL)
def test_canonicalize(case: str) -> None:
    before, after = CANONICAL[case]
    subject = module("float", *before)
    run(Canonicalize(), subject)
    assert lines(subject) == after
    computes_the_same(module("float", *before), subject, rtol=1e-6)


def test_windows_of_different_sizes_stay_as_they_are() -> None:
    line = "%a = adaptive_avg_pool2d(%x) {output_size = (4, 4)} : f32[N, 4, 4, 4]"
    subject = module("float", line, "%a")
    run(Canonicalize(), subject)
    assert lines(subject) == [line, "return %a"]


def test_dropout_that_drops_stays() -> None:
    subject = module("float", "%b = dropout(%x) {p = 0.5, training = true} : f32[N, 4, 6, 6]", "%b")
    run(Canonicalize(), subject)
    assert lines(subject)[0].startswith("%b = dropout(%x)")


GEOMETRY = "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "
PADDED = "{stride = (1, 1), padding = (1, 1, 1, 1), dilation = (1, 1)} "


def shown(subject: Module) -> list[str]:
    """The lines without attributes."""
    return [line.partition(" {")[0] if " {" in line else line.partition(" :")[0] for line in lines(subject)]


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


def test_eliminate_dead_code_removes_nodes_and_tensors() -> None:
    subject = module(
        "float", *conv("dead", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%r = relu(%x) : f32[N, 4, 6, 6]", "%r"
    )
    run(EliminateDeadCode(), subject)
    assert lines(subject) == ["%r = relu(%x) : f32[N, 4, 6, 6]", "return %r"]
    assert subject.tensors == {}


def test_fold_constants_computes_what_it_may() -> None:
    text = [
        leaf("a", "f32", 4, 1, 1, kind="constant"),
        leaf("b", "f32", 4, 1, 1, kind="constant"),
        "%s = add(%a, %b) : f32[4, 1, 1]",
        "%y = mul(%x, %s) : f32[N, 4, 6, 6]",
        "%y",
    ]
    subject = module("canonical", *text)
    expected = subject.tensors["a"] + subject.tensors["b"]
    run(FoldConstants(), subject)
    run(EliminateDeadCode(), subject)
    assert [line.partition(" : ")[0] for line in lines(subject)] == ["%y = mul(%x, %s_1)", "return %y"]
    assert torch.equal(next(iter(subject.tensors.values())), expected)


FUSED: dict[str, tuple[list[str], list[str]]] = {
    "two in a row": (
        ["%a = relu(%x) : f32[N, 4, 6, 6]", "%b = clamp(%a) {min = -1.0, max = 6.0} : f32[N, 4, 6, 6]", "%b"],
        ["%a = clamp(%x) {min = 0.0, max = 6.0} : f32[N, 4, 6, 6]", "return %a"],
    ),
    "over a pooling": (
        [
            "%p = max_pool2d(%x) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "%r = relu(%p) : f32[N, 4, 3, 3]",
            "%r",
        ],
        [
            "%r_1 = relu(%x) : f32[N, 4, 6, 6]",
            "%p = max_pool2d(%r_1) {kernel = (2, 2), stride = (2, 2)} : f32[N, 4, 3, 3]",
            "return %p",
        ],
    ),
    "not where others read": (
        [
            "%p = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%r = relu(%p) : f32[N, 6, 6, 4]",
            "%s = add(%p, %r) : f32[N, 6, 6, 4]",
            "%s",
        ],
        [
            "%p = permute(%x) {axes = (0, 2, 3, 1)} : f32[N, 6, 6, 4]",
            "%r = relu(%p) : f32[N, 6, 6, 4]",
            "%s = add(%p, %r) : f32[N, 6, 6, 4]",
            "return %s",
        ],
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_fuse_activations(case: str) -> None:
    before, after = FUSED[case]
    subject = module("canonical", *before)
    record = run(FuseActivations(), subject)
    assert lines(subject) == after
    computes_the_same(module("canonical", *before), subject, rtol=0.0)
    assert (refusals(record) == ["p has other users"]) == (case == "not where others read")


def quantized(*text: str, upto: type[Pass], target: str = "int8_dsp") -> tuple[Module, PassContext]:
    """The passes of the default pipeline up to one, without data."""
    subject = module("float", *text)
    context = PassContext(load_target(target), calibration_data=[[torch.randn(2, 4, 6, 6)]])
    for item in quantization_passes():
        run(item, subject, context)
        if isinstance(item, upto):
            break
    return subject, context


def test_insert_quantizers_follows_the_descriptor() -> None:
    text = [
        *conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%r = relu(%c) : f32[N, 8, 6, 6]",
        "%p = max_pool2d(%r) {kernel = (2, 2), stride = (2, 2)} : f32[N, 8, 3, 3]",
        "%s = add(%p, %p) : f32[N, 8, 3, 3]",
        "%s",
    ]
    subject, _ = quantized(*text, upto=InsertQuantizers)
    assert shown(subject) == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%c.weight.q = fake_quantize(%c.weight, %c.weight.scale, %c.weight.zero_point)",
        "%c = conv2d(%x.q, %c.weight.q)",
        "%r = relu(%c)",  # no quantizer in between: a supergroup
        "%r.q = fake_quantize(%r, %r.scale, %r.zero_point)",
        "%p = max_pool2d(%r.q)",  # moves codes: on the grid of its input
        "%s = add(%p, %p)",
        "%s.q = fake_quantize(%s, %s.scale, %s.zero_point)",
        "return %s.q",
    ]
    specs = [str(node.attributes["spec"]) for node in subject.main.nodes if node.op == "fake_quantize"]
    assert specs == ["s8", "s8 symmetric narrow", "s8", "s8"]


def test_insert_quantizers_refuses_what_the_target_lacks() -> None:
    text = [
        "%c = matmul(%x, %x) : f32[N, 4, 6, 6]",
        "%c",
    ]
    with pytest.raises(UnsupportedError, match=r"the target int8_dsp has no integer matmul.*add a rule"):
        quantized(*text, upto=InsertQuantizers)


def test_unify_scales_makes_one_grid_of_a_concat() -> None:
    text = [
        *conv("a", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        *conv("b", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%c = concat(%a, %b) {axis = 1} : f32[N, 16, 6, 6]",
        "%c",
    ]
    subject, _ = quantized(*text, upto=UnifyScales)
    a, b = (node for node in subject.main.nodes if node.name in ("a.q", "b.q"))
    assert a.inputs[1:] == b.inputs[1:]


def test_the_scale_of_a_bias_follows_the_grid_that_it_shares() -> None:

    text = [
        *conv("a", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        *conv("b", "%x", 8, "f32[N, 8, 6, 6]", PADDED),
        "%g = sigmoid(%x) : f32[N, 4, 6, 6]",
        "%c = concat(%g, %b, %a) {axis = 1} : f32[N, 20, 6, 6]",
        leaf("d.weight", "f32", 2, 20, 1, 1),
        leaf("d.bias", "f32", 2),
        "%d = conv2d(%c, %d.weight, %d.bias) : f32[N, 2, 6, 6]",
        "%d",
    ]
    subject, _ = quantized(*text, upto=UnifyScales)
    product = next(node for node in subject.main.nodes if node.op == "scale_product" and node.name.startswith("d"))
    concat = next(node for node in subject.main.nodes if node.op == "concat")
    grids = {value.producer.inputs[1] for value in concat.inputs if value.producer is not None}
    assert grids == {product.inputs[0]}, "one grid for all parts, and the bias on it"


def test_fuse_requantization_makes_code_limits_of_activations() -> None:
    text = [*conv("c", "%x", 8, "f32[N, 8, 6, 6]", PADDED), "%r = relu(%c) : f32[N, 8, 6, 6]", "%r"]
    subject, _ = quantized(*text, upto=FuseRequantization)
    assert "relu" not in {node.op for node in subject.main.nodes}
    quantizer = next(node for node in subject.main.nodes if node.name == "r.q")
    zero_point = int(subject.tensors["r.zero_point"])
    assert (quantizer.attributes["qmin"], quantizer.attributes["qmax"]) == (zero_point, 127)
