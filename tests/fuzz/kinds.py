"""The kinds of lines with operators of their own."""

from __future__ import annotations

import math

from tests.fuzz.draw import Drawing
from tests.fuzz.table import divisors, kind, listed

# Layers


def odd_weight(d: Drawing, shape: int) -> list[str]:
    """Lines that give a weight an odd scale."""
    if d.chance(0.88):
        return []
    d.odd = True
    return [
        d.pick(
            [
                "@.weight.data.mul_(1e-3)",
                "@.weight.data.mul_(100.0)",
                "@.weight.data[0].mul_(100.0)",
                "@.weight.data[0].zero_()",
                "@.weight.data.zero_()",
                "@.weight.data.abs_()",
                "@.weight.data.mul_(1e-9)",
            ]
        )
    ]


def odd_bias(d: Drawing, has_bias: bool, *, transposed: bool = False) -> list[str]:
    """Lines that give a bias an odd scale: in a transposed convolution often, whose sums have a formula of their own."""
    if not has_bias or d.chance(0.8 if transposed else 0.93):
        return []
    d.odd = True
    return [f"@.bias.data.mul_({d.pick(['100.0', '1e4', '0.0'])})"]


@kind(14)
def convolution(d: Drawing, x: str) -> str:
    """A convolution, its layer or its function, of images, sequences and volumes."""
    shape = d.shape(x)
    rank = len(shape) - 2
    d.needs(rank in (1, 2, 3))
    channels = shape[1]
    groups = 1 if d.chance(0.6) else d.pick([*divisors(channels), channels])
    filters = groups * d.number(1, max(1, 8 // groups))
    kernel = d.few(1, min(3, *shape[2:]) if d.chance(0.9) else 3, rank)
    stride, padding = d.few(1, 2, rank), d.few(0, 2, rank)
    dilation = "1" if d.chance(0.8) else d.few(1, 2, rank)
    has_bias = d.chance(0.75)
    if d.chance(0.06):
        padding = d.pick(['"same"', '"valid"'])
        stride = "1" if padding == '"same"' else stride
    options = [f"stride={stride}"] * (stride != "1") + [f"padding={padding}"] * (padding != "0")
    options += [f"dilation={dilation}"] * (dilation != "1") + [f"groups={groups}"] * (groups > 1)
    if d.chance(0.12):
        sizes = (int(kernel),) * rank if kernel.isdigit() else eval(kernel)  # noqa: S307  # a tuple of sizes
        weight = d.tensor([filters, channels // groups, *sizes], 0.3)
        bias = f", {d.tensor([filters])}" if has_bias else ""
        return f"F.conv{rank}d({listed([x, f'{weight}{bias}', *options])})"
    if d.wild and d.chance(0.1):
        options.append(f'padding_mode="{d.pick(["reflect", "circular", "replicate"])}"')
    options += ["bias=False"] * (not has_bias)
    more = [*odd_weight(d, rank), *odd_bias(d, has_bias)]
    layer = d.make("conv", f"nn.Conv{rank}d({listed([channels, filters, kernel, *options])})", *more)
    return f"{layer}({x})"


@kind(3)
def transposed_convolution(d: Drawing, x: str) -> str:
    """A transposed convolution."""
    shape = d.shape(x)
    rank = len(shape) - 2
    d.needs(rank in (1, 2, 3))
    groups = 1 if d.chance(0.7) else d.pick(divisors(shape[1]))
    filters = groups * d.number(1, max(1, 6 // groups))
    stride = d.number(1, 3)
    options = [f"stride={stride}", f"padding={d.number(0, 1)}", f"output_padding={d.number(0, stride - 1)}"]
    options += [f"groups={groups}"] * (groups > 1)
    dilation, has_bias = d.pick([1, 1, 1, 2]), d.chance(0.75)
    options += ["bias=False"] * (not has_bias) + [f"dilation={dilation}"] * (dilation > 1)
    more = [*odd_weight(d, rank), *odd_bias(d, has_bias, transposed=True)]
    arguments = [shape[1], filters, d.few(1, 3, rank), *options]
    return f"{d.make('deconv', f'nn.ConvTranspose{rank}d({listed(arguments)})', *more)}({x})"


@kind(9)
def linear(d: Drawing, x: str) -> str:
    """A linear layer over the last axis, of any number of axes."""
    shape = d.shape(x)
    d.needs(len(shape) > 1)
    features, out, has_bias = shape[-1], d.number(1, 8), d.chance(0.75)
    if d.chance(0.2):
        weight = d.tensor([out, features])
        options = [weight, d.tensor([out])] if has_bias else [weight]
        spellings = [f"F.linear({listed([x, *options])})", f"({x} @ {weight}.t())", f"torch.matmul({x}, {weight}.mT)"]
        if len(shape) == 2 and has_bias:
            spellings.append(f"torch.addmm({options[1]}, {x}, {weight}.t())")
        return d.pick(spellings)
    text = f"nn.Linear({features}, {out}{'' if has_bias else ', bias=False'})"
    return f"{d.make('fc', text, *odd_weight(d, 2), *odd_bias(d, has_bias))}({x})"


@kind(3)
def shared_module(d: Drawing, x: str) -> str:
    """A module that was called before."""
    modules = sorted({f"self.{name}" for name, _ in d.made if name.rstrip("0123456789") not in ("p", "b")})
    d.needs(bool(modules))
    return f"{d.pick(modules)}({x})"


@kind(7)
def batch_norm(d: Drawing, x: str) -> str:
    """A batch norm, with statistics that are often odd."""
    shape = d.shape(x)
    d.needs(2 <= len(shape) <= 5)
    rank = max(1, len(shape) - 2)
    more = ["nn.init.uniform_(@.running_mean, -1, 1)", "nn.init.uniform_(@.running_var, 0.5, 2)"]
    affine = d.chance(0.85)
    if affine:
        more += ["nn.init.uniform_(@.weight, -1.5, 1.5)", "nn.init.uniform_(@.bias, -1, 1)"]
    if d.chance(0.2):
        d.odd = True
        lines = [
            "nn.init.constant_(@.running_var, 1e-6)",
            "nn.init.constant_(@.running_var, 0.0)",
            "nn.init.constant_(@.running_var, 1e4)",
            "@.running_var.data[0] = 1e-4",
            "nn.init.constant_(@.running_mean, 100.0)",
        ]
        lines += [*["nn.init.zeros_(@.weight)"] * 3, "@.weight.data[0] = 0.0", "@.weight.data[-1] = 50.0"] * affine
        more.append(d.pick(lines))
    if d.chance(0.1):
        mean, variance = d.tensor([shape[1]]), d.make("p", f"nn.Parameter(torch.rand({shape[1]}) + 0.5)")
        return f"F.batch_norm({x}, {mean}, {variance})"
    options = [] if affine else ["affine=False"]
    return f"{d.make('bn', f'nn.BatchNorm{rank}d({listed([shape[1], *options])})', *more)}({x})"


@kind(4)
def normalization(d: Drawing, x: str) -> str:
    """A layer norm over the last axes, or a softmax."""
    shape = d.shape(x)
    d.needs(len(shape) > 1)
    d.odd = d.odd or shape[-1] < 8  # for few elements that are nearly equal, a comparison of codes shows nothing
    if d.chance(0.5):
        axis = d.pick([-1, -1, 1, len(shape) - 1])
        forms = [f"F.softmax({x}, {axis})", f"{x}.softmax({axis})", f"F.log_softmax({x}, {axis})"]
        return d.pick([*forms * 3, f"F.softmax({x}, {axis}) * 3", f"torch.softmax({x}, {axis}) / {shape[axis]}"])
    inner = shape[-d.number(1, max(1, min(2, len(shape) - 1))) :]
    d.needs(math.prod(inner) > 1)
    if d.chance(0.2):
        return f"F.layer_norm({x}, {inner})"
    affine = d.chance(0.7)
    more = ["nn.init.uniform_(@.weight, -1, 1)", "nn.init.uniform_(@.bias, -1, 1)"] if affine else []
    if affine and d.chance(0.08):
        more[0] = d.pick(["nn.init.zeros_(@.weight)", "@.weight.data[0] = 0.0"])
    text = f"nn.LayerNorm({inner}{'' if affine else ', elementwise_affine=False'})"
    return f"{d.make('ln', text, *more)}({x})"


# Activations

ACTIVATIONS = [
    *["F.relu({0})"] * 8, *["{0}.relu()", "torch.relu({0})"] * 2, *["F.relu6({0})"] * 3, "F.hardtanh({0})",
    "F.hardtanh({0}, -0.5, 2.0)", "{0}.clamp(-1.0, 1.5)", "{0}.clamp(min=0.25)", "torch.clamp({0}, max=0.5)",
    "{0}.clamp(0, 4)", "torch.clamp({0}, -2.0, -0.5)", "{0}.clamp_min(0.0)", "torch.sigmoid({0})", "{0}.sigmoid()", "torch.tanh({0})", "{0}.tanh()",
    "F.silu({0})", "F.hardswish({0})", "F.hardsigmoid({0})", "F.gelu({0})", 'F.gelu({0}, approximate="tanh")',
    "F.leaky_relu({0}, 0.1)", "F.leaky_relu({0}, 1.5)", "F.leaky_relu({0}, -0.2)", "F.elu({0})", "F.elu({0}, 0.5)", "F.celu({0}, 2.0)",
    "F.selu({0})", "F.softplus({0})", "F.logsigmoid({0})", "F.mish({0})", "F.softsign({0})",
    "F.tanhshrink({0})", "F.softshrink({0}, 0.3)", "torch.abs({0})", "{0}.abs()", "torch.exp(-{0}.abs())",
    "torch.erf({0})", "torch.sin({0})", "torch.cos({0})", "torch.atan({0})", "{0}.square()", "{0} ** 2", "{0} * F.softplus({0}).tanh()",
    "{0} * torch.sigmoid({0})", "{0} * F.relu6({0} + 3) / 6",
]  # fmt: skip
STEEP = [
    "torch.exp({0})", "torch.expm1({0})", "torch.log({0}.abs() + 0.3)", "torch.log1p({0}.abs())", "torch.sqrt({0}.abs())", "torch.rsqrt({0}.abs() + 0.5)",
    "torch.reciprocal({0}.abs() + 0.5)", "1 / ({0}.abs() + 1)", "F.hardshrink({0})", "torch.sqrt({0}.relu())", "F.softplus({0}, 2.0, 10.0)", "{0} ** 3", "{0}.pow(0.5)",
]  # fmt: skip
MODULES = [
    "ReLU()", "ReLU()", "ReLU(inplace=True)", "ReLU6()", "Hardtanh(-1.0, 2.0)", "Sigmoid()", "Tanh()", "SiLU()", "Hardswish()", "Hardsigmoid()", "GELU()",
    "LeakyReLU(0.2)", "ELU()", "CELU()", "SELU()", "Softplus()", "LogSigmoid()", "Mish()", "Softsign()", "Tanhshrink()", "Dropout(0.5)", "Identity()",
]  # fmt: skip


@kind(12)
def activation(d: Drawing, x: str) -> str:
    """A function of one number."""
    return d.pick(ACTIVATIONS).format(x)


@kind(1.5)
def steep_activation(d: Drawing, x: str) -> str:
    """A function of one number that may enlarge what rounding did to it."""
    d.odd = True
    return d.pick(STEEP).format(x)


@kind(5)
def activation_module(d: Drawing, x: str) -> str:
    """The same as a module."""
    return f"{d.make('act', f'nn.{d.pick(MODULES)}')}({x})"


@kind(1.5)
def prelu(d: Drawing, x: str) -> str:
    """One slope for all channels, or one for each."""
    shape = d.shape(x)
    d.needs(len(shape) > 1)
    more = ["nn.init.uniform_(@.weight, -0.5, 1.5)"]
    return f"{d.make('act', f'nn.PReLU({d.pick([1, shape[1]])})', *more)}({x})"


# Pooling and images of another size


@kind(6)
def pooling(d: Drawing, x: str) -> str:
    """Windows with all options."""
    rank = len(d.shape(x)) - 2
    d.needs(rank in (1, 2) or (rank == 3 and d.wild))
    kernel = d.number(1, 3)
    options: list[object] = [kernel] if d.chance(0.4) else [kernel, f"stride={d.number(1, 3)}"]
    options += [f"padding={d.number(0, kernel // 2)}"] * d.chance(0.4) + ["ceil_mode=True"] * d.chance(0.3)
    if d.chance(0.5):
        options += [f"dilation={d.number(1, 2)}"] * d.chance(0.15)
        if d.chance(0.4):
            return f"{d.make('pool', f'nn.MaxPool{rank}d({listed(options)})')}({x})"
        return f"F.max_pool{rank}d({listed([x, *options])})"
    options += ["count_include_pad=False"] * d.chance(0.3)
    options += [f"divisor_override={d.pick([1, 3, 4, 7])}"] * (rank > 1 and d.chance(0.15))
    if d.chance(0.4):
        return f"{d.make('pool', f'nn.AvgPool{rank}d({listed(options)})')}({x})"
    return f"F.avg_pool{rank}d({listed([x, *options])})"


@kind(3)
def adaptive_pooling(d: Drawing, x: str) -> str:
    """Windows of the size that the result requires."""
    rank = len(d.shape(x)) - 2
    d.needs(rank in (1, 2, 3))
    size = "1" if d.chance(0.5) or rank != 2 else d.few(1, 4, rank)
    what = d.pick(["avg", "avg", "max"])
    if d.chance(0.4):
        name = f"nn.Adaptive{what.capitalize()}Pool{rank}d({size})"
        return f"{d.make('pool', name)}({x})"
    return f"F.adaptive_{what}_pool{rank}d({x}, {size})"


@kind(4)
def mean(d: Drawing, x: str) -> str:
    """A mean over one axis or several."""
    shape = d.shape(x)
    axes = sorted(d.random.sample(range(1, len(shape)), d.number(1, len(shape) - 1)))
    if d.chance(0.03):
        axes = [0]
    shown = str(axes[0] if len(axes) == 1 and d.chance(0.5) else tuple(axes))
    if d.chance(0.3):
        shown = shown.replace(str(len(shape) - 1), "-1")
    return f"{x}.mean({shown}{', keepdim=True' if d.chance(0.5) else ''})"


@kind(2)
def resize(d: Drawing, x: str) -> str:
    """Images of another size."""
    rank = len(d.shape(x)) - 2
    d.needs(rank == 2 or (d.wild and rank in (1, 3)))
    mode = d.pick(["nearest", "bilinear"]) if rank == 2 else "nearest"
    size = f"scale_factor={d.pick([2, 2, 3, 0.5, 1.5])}" if d.chance(0.6) else f"size={d.sizes(rank, 1, 9)}"
    corners = ", align_corners=True" if mode == "bilinear" and d.chance(0.4) else ""
    if d.chance(0.3):
        layer = d.make("up", f'nn.Upsample({size}, mode="{mode}"{corners})')
        return f"{layer}({x})"
    return f'F.interpolate({x}, {size}, mode="{mode}"{corners})'


# Arithmetic


@kind(9)
def binary(d: Drawing, x: str) -> str:
    """Two tensors that broadcast."""
    other = d.other(x)
    forms = [
        "{0} + {1}", "{1} + {0}", "{0} - {1}", "{0} * {1}", "torch.add({0}, {1})", "torch.add({0}, {1}, alpha=2)",
        "torch.sub({0}, {1}, alpha=0.5)", "torch.mul({0}, {1})", "{0}.add({1})", "F.relu({0} + {1})", "{1} - {0}", "F.relu6({0} - {1})",
    ]  # fmt: skip
    d.odd = other == x
    return d.pick(forms).format(x, other)


@kind(6)
def with_number(d: Drawing, x: str) -> str:
    """A tensor and a number."""
    common = ["{0} + 0.5", "{0} * 2", "{0} * 0.125", "1 - {0}", "{0} - 3", "{0} / 3", "-{0}", "{0} * -1.5", "{0} + 1", "torch.neg({0})", "2.0 * {0} - 1.0", "torch.div({0}, 4.0)"]  # fmt: skip
    strange = [
        "{0} * 0",
        "{0} * 1e-3",
        "{0} + 100",
        "{0} * 1000.0",
        "{0} + 0",
        "{0} * 1e-12",
        "{0} - {0}",
        "0.0 - {0}",
        "{0} * 1e-6",
    ]
    d.odd = d.chance(0.2)
    return d.pick(strange if d.odd else common).format(x)


@kind(5)
def with_parameter(d: Drawing, x: str) -> str:
    """A tensor and one that the model holds."""
    shape = list(d.shape(x))[1:]
    for axis in range(len(shape)):
        if d.chance(0.5):
            shape[axis] = 1
    if d.chance(0.3):
        shape = shape[d.number(0, len(shape)) :]
    if d.chance(0.3):
        shape = [1, *shape]
    scale = d.random.choices([0.5, 1.0, 1e-3, 50.0, 0.0], [40, 40, 5, 5, 4])[0]
    d.odd = scale not in (0.5, 1.0)
    held = d.tensor(shape, scale)
    return d.pick(["{0} + {1}", "{0} * {1}", "{1} - {0}", "{0} - {1}", "{1} * {0}", "torch.add({1}, {0})"]).format(
        x, held
    )


@kind(2)
def product_of_matrices(d: Drawing, x: str) -> str:
    """Two tensors as matrices."""
    shape = d.shape(x)
    d.needs(len(shape) >= 3)
    others = [name for name in d.samples if d.shape(name) == shape]
    other = d.pick(others)
    d.odd = other == x
    return d.pick(["{0} @ {1}.transpose(-1, -2)", "torch.matmul({0}.transpose(-2, -1), {1})", "{0} @ {1}"]).format(
        x, other
    )


@kind(1.5)
def attention(d: Drawing, x: str) -> str:
    """Scaled products of queries and keys, as written by hand."""
    shape = d.shape(x)
    d.needs(len(shape) == 3)
    features = shape[-1]
    q, k = (d.make("fc", f"nn.Linear({features}, {features})") for _ in range(2))
    d.odd = True
    return f"F.softmax({q}({x}) @ {k}({x}).transpose(1, 2) * {features**-0.5:.4f}, -1) @ {x}"


@kind(2)
def squeeze_and_excite(d: Drawing, x: str) -> str:
    """A gate for each channel."""
    shape = d.shape(x)
    d.needs(len(shape) == 4)
    gate = d.make("conv", f"nn.Conv2d({shape[1]}, {shape[1]}, 1)")
    squeezed = d.pick([f"F.adaptive_avg_pool2d({x}, 1)", f"{x}.mean((2, 3), keepdim=True)"])
    return f"{x} * {d.pick(['torch.sigmoid', 'F.hardsigmoid'])}({gate}({squeezed}))"


@kind(3)
def residual(d: Drawing, x: str) -> str:
    """A layer and what it read."""
    shape = d.shape(x)
    if len(shape) == 4:
        layer = d.make("conv", f"nn.Conv2d({shape[1]}, {shape[1]}, 3, padding=1)")
    else:
        layer = d.make("fc", f"nn.Linear({shape[-1]}, {shape[-1]})")
    return d.pick(["{1} + {0}({1})", "F.relu({0}({1}) + {1})", "{1} - {0}(F.relu({1}))"]).format(layer, x)


# Lines that move elements


@kind(4)
def join(d: Drawing, x: str) -> str:
    """Tensors joined along an axis or a new axis."""
    shape = d.shape(x)
    axis = d.number(1, max(1, len(shape) - 1)) if not d.chance(0.04) else 0
    if d.chance(0.2):
        others = [name for name in d.samples if d.shape(name) == shape]
        return f"torch.stack([{listed([d.pick(others), x])}], {axis})"
    parts = [x] + [d.pick(d.fits(x, axis)) for _ in range(d.number(1, 2))]
    if d.chance(0.3):  # parts whose ranges differ
        parts[-1] = f"{parts[-1]} * {d.pick([0.01, 0.1, 20.0, 300.0])}"
    d.random.shuffle(parts)
    shown = axis if d.chance(0.8) else axis - len(shape)
    return f"torch.cat([{listed(parts)}], {shown})"


@kind(3)
def parts(d: Drawing, x: str) -> str:
    """Several parts of a tensor."""
    shape = d.shape(x)
    axis = d.number(1, len(shape) - 1) if len(shape) > 1 else 0
    d.needs(shape[axis] > 1)
    cut = d.number(1, shape[axis] - 1)
    forms = [
        f"torch.chunk({x}, 2, {axis})",
        f"torch.split({x}, {[cut, shape[axis] - cut]}, {axis})",
        f"{x}.split({cut}, {axis})",
    ]
    if shape[axis] <= 4:
        forms.append(f"{x}.unbind({axis})")
    return d.pick([*forms, f"torch.tensor_split({x}, 2, {axis})"])


@kind(4)
def piece(d: Drawing, x: str) -> str:
    """One part of a tensor."""
    shape = d.shape(x)
    d.needs(len(shape) > 1)
    axis = d.number(1, len(shape) - 1)
    size = shape[axis]
    begin = d.number(0, size - 1)
    front = ":, " * axis
    forms = [
        f"{x}[{front}{begin}:]", f"{x}[{front}:{begin + 1}]", f"{x}[{front}::2]", f"{x}[{front}{begin}::3]", f"{x}[..., -1:]", f"{x}[{front}{begin}]",
        f"{x}.narrow({axis}, {begin}, {d.number(1, size - begin)})", f"{x}.select({axis}, {begin})", f"{x}[{front}None]", f"{x}[..., {d.number(0, shape[-1] - 1)}]",
        f"{x}[{front}-1]", f"{x}[{front}:-1]",
    ]  # fmt: skip
    return d.pick(forms)


@kind(3)
def border(d: Drawing, x: str) -> str:
    """Padding with a value."""
    shape = d.shape(x)
    rank = len(shape) - 2
    count = 2 * d.number(1, max(1, len(shape) - 1))
    value = d.pick(["", "", ", value=0.5", ", value=-1.0", ", value=5.0", ", value=-100.0"])
    if d.chance(0.06):
        return f'F.max_pool{rank}d(F.pad({x}, {d.sizes(2 * max(rank, 1), 0, 1)}, value=float("-inf")), 2)'
    if rank in (1, 2) and d.chance(0.2):
        number = d.pick(["0.0", "1.5", "-2.0"])
        return f"{d.make('pad', f'nn.ConstantPad{rank}d({d.sizes(2 * rank, 0, 2)}, {number})')}({x})"
    low = -1 if d.chance(0.1) else 0
    return f"F.pad({x}, {d.sizes(count, low, 2)}{value})"


@kind(4)
def order(d: Drawing, x: str) -> str:
    """Axes in another order."""
    rank = len(d.shape(x))
    d.needs(rank > 1)
    axes = list(range(1, rank))
    d.random.shuffle(axes)
    first, second = d.random.choices(range(1, rank), k=2)
    forms = [f"{x}.permute({listed([0, *axes])})", f"{x}.transpose({first}, {second})", f"torch.permute({x}, {(0, *axes)})", f"torch.swapaxes({x}, {first}, -1)"]  # fmt: skip
    if d.chance(0.03):
        forms = [f"{x}.transpose(0, 1)"]
    return d.pick(forms)


@kind(5)
def shape(d: Drawing, x: str) -> str:
    """The same elements in another shape."""
    sizes = d.shape(x)
    inner = math.prod(sizes[1:])
    a = d.pick(divisors(inner))
    b = d.pick(divisors(inner // a))
    batch = f"{x}.shape[0]"
    forms = [
        f"{x}.flatten(1)", f"torch.flatten({x}, 1)", f"{x}.reshape({batch}, -1)", f"{x}.reshape({batch}, {a}, -1)", f"{x}.reshape(-1, {a}, {inner // a})",
        f"{x}.reshape({batch}, {a}, {b}, {inner // a // b})", f"{x}.contiguous().view({x}.size(0), -1, {a})", f"{x}.unsqueeze({d.number(1, len(sizes))})", f"{x}.unsqueeze(-1)",
        f"{x}.squeeze({d.number(1, max(1, len(sizes) - 1))})", f"{x}.unflatten(1, ({d.pick(divisors(sizes[1])) if len(sizes) > 1 else 1}, -1))",
    ]  # fmt: skip
    if len(sizes) > 2:
        forms += [f"{x}.flatten(2)", f"{x}.flatten(-2)", f"{d.make('act', 'nn.Flatten()')}({x})"]
    if d.chance(0.08):  # the batch goes into another axis
        forms = [f"{x}.reshape(-1, {a})", f"{x}.flatten(0, 1)", f"{x}.reshape({batch} * {a}, -1)", f"{x}.reshape(-1, {a}, {b})", f"{x}.reshape(-1, {a}, {b}, 1)"]  # fmt: skip
    return d.pick(forms)


@kind(2)
def shuffle(d: Drawing, x: str) -> str:
    """Elements of channels, in images of another size or in another order."""
    sizes = d.shape(x)
    d.needs(len(sizes) == 4)
    forms = [f"F.channel_shuffle({x}, {d.pick(divisors(sizes[1]))})"]
    if sizes[1] % 4 == 0:
        forms += [f"F.pixel_shuffle({x}, 2)"] * 2
    if sizes[2] % 2 == sizes[3] % 2 == 0:
        forms.append(f"F.pixel_unshuffle({x}, 2)")
    return d.pick(forms)


@kind(1)
def nothing(d: Drawing, x: str) -> str:
    """Functions that compute nothing."""
    return d.pick(
        [
            "{0}.contiguous()",
            "{0}.clone()",
            "{0}.float()",
            "F.dropout({0}, 0.1, False)",
            "{0}.detach()",
            "{0}.to(torch.float32)",
            "{0}.to({0}.device, {0}.dtype)",
            "{0}.type_as({0})",
        ]
    ).format(x)


# Values that do not depend on the data, or on less of the data than it seems


@kind(1.5)
def constant(d: Drawing, x: str) -> str:
    """Tensors that are the same for all data, with axes and without, made in the forward or held."""
    sizes = list(d.shape(x))
    d.needs(len(sizes) > 1)
    d.odd = True
    forms = [
        "{0} * torch.tensor(0.5)", "{0} + torch.tensor([1.5])", f"{{0}} + torch.ones({listed(sizes[1:])})", "{0} * 0 + 0.7", "torch.ones_like({0})", "{0} - {0} + 1.0",
        "{0} + torch.zeros_like({0})", f"{{0}} * torch.arange({sizes[-1]})", f"{{0}} * torch.linspace(-1, 1, {sizes[-1]})", "torch.full_like({0}, -0.3)", "{0} * 0.0",
        "{0} + torch.full((), 0.25)", f"{{0}} + torch.eye({sizes[-1]})[0]",
    ]  # fmt: skip
    if d.chance(0.3):
        held = d.tensor(sizes[1:])
        layer = d.make("fc", f"nn.Linear({sizes[-1]}, {sizes[-1]})")
        return d.pick(
            [f"{x} + F.relu({held})", f"{x} * {layer}({held})", f"{x} + {held}.mean()", f"{x} - {held} * {held}"]
        )
    return d.pick(forms).format(x)


@kind(1)
def tied_layer(d: Drawing, x: str) -> str:
    """A layer with the weight of another one."""
    layers = [
        (name, line) for name, line in d.made if line.startswith((f"self.{name} = nn.Conv", f"self.{name} = nn.Linear"))
    ]
    d.needs(bool(layers))
    name, line = d.pick(layers)
    tied = d.make(name.rstrip("0123456789"), line.partition(" = ")[2], f"@.weight = self.{name}.weight")
    return f"{tied}(self.{name}({x}))" if d.chance(0.3) else f"{tied}({x})"


@kind(1)
def in_place(d: Drawing, x: str) -> str:
    """Calls that change the tensor that they are called on."""
    forms = [
        "{0}.clone().mul_(0.5)",
        "{0}.clone().add_({0})",
        "F.relu({0} + 0.5, inplace=True)",
        "{0}.add(1.0).clamp_(0.0, 2.0)",
        "({0} * 2).relu_()",
        "F.relu6({0}.clone(), True)",
    ]
    return d.pick(forms).format(x)
