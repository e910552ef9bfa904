"""The user's side: types of elements, classes of results, ways to call, wrappers, defaults.

Each case is either equal in every form, classes and element types included, or an error with a type. Arithmetic is not
the question: few of the models are verified in C.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import qcompiler
from qcompiler.errors import CaptureError, InputError, QCompilerError, UnsupportedError
from qcompiler.frontends import capture
from qcompiler.ir import tree
from qcompiler.targets import Target, load_target
from tests.support.running import outputs_of

Shape: TypeAlias = Callable[[Tensor, Tensor], object]


class Pair(NamedTuple):
    logits: Tensor
    image: Tensor


@dataclass
class Boxes:
    logits: Tensor
    rest: list[Tensor]


class Output(OrderedDict[str, object]):
    pass


class Net(nn.Module):
    """A small network whose result is what `shape` makes of its logits and its input."""

    def __init__(self, shape: Shape = lambda logits, x: logits) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, device="cpu", dtype=torch.float32)
        self.head = nn.Linear(4, 3, device="cpu", dtype=torch.float32)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32) / 3
        self.shape = shape
        self.calls = 0
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros((), device="cpu", dtype=torch.float32))
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        features: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return features

    def forward(self, x: Tensor) -> object:
        return self.shape(self.logits(x), x)


def images(count: int = 4) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=generator, device="cpu", dtype=torch.float32)


@functools.cache
def islands() -> Target:
    return load_target("int8_dsp").override(fallback="float")


def compiled(model: nn.Module, x: object = None, **options: Any) -> qcompiler.Compiled:
    data = [images() if x is None else x]
    return qcompiler.compile(model, options.pop("target", "int8_dsp"), calibration_data=data, verify="off", **options)


def same(found: object, expected: object) -> bool:
    """The same classes around the same bits."""
    a, first = tree.flatten(found, values=True)
    b, second = tree.flatten(expected, values=True)
    return first == second and all(
        x.dtype == y.dtype and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True)
    )


def as_of(found: object, model: object) -> bool:
    """Classes, shapes and element types are those of the model's result."""
    a, first = tree.flatten(found, values=True)
    b, second = tree.flatten(model, values=True)
    kinds = all(x.dtype == y.dtype and x.shape == y.shape for x, y in zip(a, b, strict=True))
    return kinds and first == second and type(found) is type(model)


RESULTS: dict[str, Shape] = {
    "tensor": lambda logits, x: logits,
    "tuple": lambda logits, x: (logits, x),
    "list in dict": lambda logits, x: {"a": [logits, None], "b": (x, {"c": logits})},
    "NamedTuple": Pair,
    "dataclass": lambda logits, x: Boxes(logits, [x, logits * 2]),
    "dict of its own class": lambda logits, x: Output(logits=logits, image=x),
    "number": lambda logits, x: (logits, 3, True, 0.5),
    "size": lambda logits, x: (logits, x.shape[1]),
    "torch.max": lambda logits, x: torch.max(logits, 1),
    "torch.sort": lambda logits, x: (torch.sort(logits, dim=1), x),
    "bool": lambda logits, x: (logits, logits > 0),
    "argmax": lambda logits, x: logits.argmax(1),
    "nested classes": lambda logits, x: [Pair(logits, x), Output(a=Boxes(logits, [x]))],
}
IN_FLOAT = ("torch.max", "torch.sort", "bool", "argmax")


@functools.cache
def made(name: str) -> tuple[nn.Module, qcompiler.Compiled]:
    model = Net(RESULTS[name])
    return model, compiled(model, target=islands() if name in IN_FLOAT else "int8_dsp")


@pytest.mark.parametrize("name", RESULTS)
def test_results_come_back_as_their_own_class_in_every_form(name: str, tmp_path: Path) -> None:
    model, found = made(name)
    x = images()
    expected = found.simulate(x)
    assert as_of(expected, model(x))
    loaded = qcompiler.load(found.save(tmp_path / "out"))
    for form in (found.run, found.module(), pickle.loads(pickle.dumps(found)).run):  # noqa: S301  # of our own making
        assert same(form(x), expected)
        assert same(form(x=x), expected)
    plain, given = tree.flatten(loaded.run(x=x), values=True), tree.flatten(expected, values=True)
    assert all(map(torch.equal, plain[0], given[0]))
    assert tree.same_nesting(plain[1], given[1])
    arrays = found.run(x.numpy())
    leaves = found.quantized.main.output_tree
    assert same(_tensors(arrays), _tensors(expected))
    assert same(_tensors(found.simulate(x=x.numpy())), _tensors(expected))
    assert _classes(arrays) == _classes(expected), leaves
    with pytest.raises(InputError, match="is empty"):
        found.run(x[:0])
    with pytest.raises(InputError, match="is empty"):
        found.simulate(x[:0])
    with pytest.raises(InputError, match="is empty"):
        found.module()(x[:0])


def _tensors(value: object) -> list[Tensor]:
    """All leaves, arrays as tensors."""
    found = tree._Flat("value", values=True, arrays=True)
    found.of(value)
    return found.leaves


def _classes(value: object) -> tree.Tree:
    return tree._Flat("value", values=True, arrays=True).of(value)


def test_a_loaded_artifact_gives_fields_of_the_same_names(tmp_path: Path) -> None:
    _, found = made("nested classes")
    result: Any = qcompiler.load(found.save(tmp_path / "out")).run(images())
    pair, output = result
    assert pair._fields == ("logits", "image")
    assert type(output) is dict
    assert output["a"]._fields == ("logits", "rest")
    assert type(pair).__name__ == "Pair"


def test_a_module_that_learns_gives_them_too() -> None:
    module = qcompiler.prepare_qat(Net(RESULTS["nested classes"]), calibration_data=[images()])
    for training in (True, False):
        module.train(training)
        assert as_of(module(x=images()), Net(RESULTS["nested classes"])(images()))
    module.eval()
    assert same(compiled_of(module).run(images()), module(images()))
    with pytest.raises(InputError, match="is empty"):
        module(images()[:0])


def compiled_of(module: nn.Module) -> qcompiler.Compiled:
    return qcompiler.compile(module, verify="off")


def test_a_class_that_cannot_be_made_again_is_refused() -> None:
    class Odd:
        pass

    @dataclass
    class Checked:
        logits: Tensor

        def __post_init__(self) -> None:
            if self.logits.dim() == 2:
                self.logits = self.logits[None]

    class Doubled(Net):
        def forward(self, x: Tensor) -> object:
            result = Checked(self.logits(x))
            return copy.copy(result)

    with pytest.raises((CaptureError, InputError), match="Odd"):
        capture(Net(lambda logits, x: Odd()), images())
    with pytest.raises(QCompilerError):
        capture(Doubled(), images())


TYPES = (torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_model_of_another_float_type_keeps_it_outside(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = Net(RESULTS["NamedTuple"]).to(dtype), images().to(dtype)
    found = compiled(model, x)
    assert any(str(dtype).removeprefix("torch.") in str(item) for item in found.diagnostics)
    expected = found.simulate(x)
    assert as_of(expected, model(x))
    for form in (found.run, found.module()):
        assert same(form(x), expected)
    loaded = qcompiler.load(found.save(tmp_path / "out"))
    assert torch.equal(loaded.run(x).logits, expected.logits)  # type: ignore[attr-defined]  # what it is
    assert same(found.run(x.float()), expected), "float32 is accepted, too"
    plain = compiled(Net(RESULTS["NamedTuple"]).to(dtype).float(), x.float())
    assert same(plain.run(x.float()), type(expected)(*(y.float() for y in expected))) or dtype != torch.float64  # type: ignore[attr-defined]
    module = qcompiler.prepare_qat(model, calibration_data=[x])
    assert as_of(module.eval()(x), model(x))
    with pytest.raises(InputError, match=r"element type b?float|is a bfloat16"):
        compiled(Net()).run(x)


def _autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.logits(x)


def _counted(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    return net.logits(x)


def _counted_in_buffer(net: Net, x: Tensor) -> Tensor:
    net.seen += 1
    return net.logits(x)


def _autocast_of_the_input(net: Net, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return net.logits(x)


def _without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.logits(x).double()


DOUBLES = torch.full((3,), 0.5, dtype=torch.float64)
HALVES = torch.full((3,), 0.5, dtype=torch.float16)

FORWARDS: dict[str, Callable[[Net, Tensor], object]] = {
    "half": lambda net, x: net.logits(x).half(),
    "half and back": lambda net, x: net.logits(x.half().float()).bfloat16().float(),
    "to(dtype)": lambda net, x: net.logits(x.to(torch.float64).to(torch.float32)).to(torch.bfloat16),
    "to(device, dtype)": lambda net, x: net.logits(x).to(x.device, torch.float64),
    "to(device=, dtype=)": lambda net, x: net.logits(x).to(device="cpu", dtype=torch.float16),
    "made": lambda net, x: net.logits(x) + torch.full((3,), 0.5, dtype=torch.float64),
    "made of NumPy": lambda net, x: net.logits(x) + torch.from_numpy(np.full(3, 0.5)),
    "global made": lambda net, x: net.logits(x) + DOUBLES,
    "to(other)": lambda net, x: net.logits(x).to(HALVES),
    "type_as": lambda net, x: net.logits(x).type_as(DOUBLES),
    "type(class)": lambda net, x: net.logits(x).type(torch.DoubleTensor),  # type: ignore[call-overload]  # a class, which torch takes
    "type(name)": lambda net, x: net.logits(x).type("torch.HalfTensor"),
    "no_grad": _without_gradients,
    "autocast": _autocast,
    "autocast of the input": _autocast_of_the_input,
    "counter": _counted,
    "counter in a buffer": _counted_in_buffer,
}


class Forwards(Net):
    def __init__(self, function: Callable[[Net, Tensor], object], *, exported: bool) -> None:
        super().__init__()
        self.function, self.exported = function, exported

    def forward(self, x: Tensor) -> object:
        if self.exported:
            for _ in range(x.dim() - 4):  # what torch.fx cannot trace
                x = x + 1
        return self.function(self, x)


@pytest.mark.parametrize(("name", "exported"), [*itertools.product(FORWARDS, (False, True))])
def test_types_and_counters_inside_of_a_forward(name: str, exported: bool) -> None:
    model = Forwards(FORWARDS[name], exported=exported)
    x = images()
    found = compiled(model)
    assert as_of(found.run(x), model(x))
    assert same(found.run(x), found.simulate(x))
    codes = compiled(Net()).run(x).float()  # type: ignore[attr-defined]  # a tensor
    expected = codes + 0.5 if "made" in name else codes
    step = 2**-7 * float(expected.abs().max())  # of bfloat16, the coarsest; and one of the int8 grids
    assert (found.run(x).float() - expected).abs().max() <= 2 * step  # type: ignore[attr-defined]  # a tensor


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("name", ["half", "global made", "autocast", "no_grad", "counter in a buffer"])
def test_programs_of_other_types_are_compiled_in_float32(name: str, as_module: bool, dtype: torch.dtype) -> None:
    model, x = Forwards(FORWARDS[name], exported=False).to(dtype), images().to(dtype)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    before = {key: tensor.clone() for key, tensor in program.state_dict.items()}
    found = capture(program.module() if as_module else program, x)
    values = [value for node in found.module.main.nodes for value in node.outputs]
    assert not {str(value.type.dtype) for value in values} & {"f16", "bf16", "f64"}
    graph = found.module.main
    expected = copy.deepcopy(model)(x)  # whose buffers are those of the program
    assert as_of(tree.unflatten(graph.output_tree, outputs_of(graph, [x.float()])), expected)
    assert all(torch.equal(tensor, program.state_dict[key]) for key, tensor in before.items())
    assert all(tensor.dtype == before[key].dtype for key, tensor in program.state_dict.items())


def test_a_program_of_halves_is_calibrated_and_run() -> None:
    model, x = Net(RESULTS["NamedTuple"]).half(), images().half()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert as_of(compiled(program, x).run(x), model(x))  # type: ignore[arg-type]  # it takes programs, too


def test_a_model_that_gives_another_result_at_each_call_is_named() -> None:
    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.logits(x) * self.calls

    with pytest.raises(CaptureError, match="different results for the same inputs"):
        capture(Counts(), images())


def test_a_counter_that_shows_in_the_result_is_refused() -> None:
    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return self.logits(x) * self.seen

    class CountsInPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return self.logits(x) * self.seen

    for kind in (Counts, CountsInPlace):
        with pytest.raises((CaptureError, UnsupportedError), match="'seen'"):
            compiled(kind())


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "settings",
    [default_dtype, default_device, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["float64", "meta", "autocast", "with meta"],
)
def test_defaults_of_torch_take_no_part_and_stay(
    settings: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    expected = compiled(Net()).artifact.files()
    x, model = images(), Net()
    learned = qcompiler.prepare_qat(Net(), calibration_data=[x]).eval()(x)
    with settings():
        before = (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"))
        state = torch.get_rng_state() if before[1].type == "cpu" else None
        found = compiled(model)
        results = [found.simulate(x), found.run(x), found.module()(x)]
        assert qcompiler.compile(model, example_inputs=x, verify="error", calibration_data=[x]).verification
        module = qcompiler.prepare_qat(model, calibration_data=[x]).eval()
        assert torch.equal(module(x), learned)
        assert before == (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"))
        assert state is None or torch.equal(torch.get_rng_state(), state)
    assert found.artifact.files() == expected
    assert all(torch.equal(y, results[0]) for y in results)


def test_batches_are_made_with_the_callers_defaults() -> None:
    def batches() -> Iterator[Tensor]:
        for _ in range(2):
            yield torch.ones(4, 3, 6, 6)

    with default_dtype():
        found = qcompiler.compile(Net().double(), calibration_data=batches(), verify="off")
        assert found.run(torch.ones(1, 3, 6, 6)).dtype == torch.float64  # type: ignore[attr-defined]  # a tensor


def wrapped(kind: str, model: nn.Module) -> nn.Module:
    match kind:
        case "DataParallel":
            return nn.DataParallel(model)
        case "AveragedModel":
            return AveragedModel(model).eval()
        case "torch.compile":
            return torch.compile(model)  # type: ignore[return-value]  # a module
    return AveragedModel(nn.DataParallel(model)).eval()


@pytest.mark.parametrize("kind", ["DataParallel", "AveragedModel", "torch.compile", "both"])
def test_wrappers_are_taken_off(kind: str) -> None:
    expected = compiled(Net()).artifact
    found = compiled(wrapped(kind, Net()))
    assert found.artifact.program.weights() == expected.program.weights()
    assert any("is removed" in str(item) for item in found.diagnostics)
    labelled = [(images(), torch.zeros(4))]
    module = qcompiler.prepare_qat(wrapped(kind, Net()), calibration_data=labelled)
    assert "conv.weight" in dict(module.named_parameters())
    assert any("is removed" in str(item) for item in module.diagnostics)


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> object:
        return self.net(*inputs, **named)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_forward_that_takes_any_arguments(by_name: bool, tmp_path: Path) -> None:
    found = compiled(Anything(), {"x": images()} if by_name else (images(),))
    expected = compiled(Net()).run(images())
    for form in (found.run, found.simulate, found.module(), qcompiler.load(found.save(tmp_path / "out")).run):
        assert same(form(x=images()) if by_name else form(images()), expected)


class Masked(Net):
    def forward(self, x: Tensor, *, mask: Tensor, gain: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.logits(x) * mask if gain is None else self.logits(x) * mask * gain


def test_arguments_by_name_reach_every_form(tmp_path: Path) -> None:
    x, mask, gain = images(), torch.ones(4, 1), torch.tensor(2.0)
    found = compiled(Masked(), {"x": x, "gain": gain, "mask": mask})
    expected = found.run(x, mask=mask, gain=gain)
    for form in (found.simulate, found.module(), qcompiler.load(found.save(tmp_path / "out")).run):
        assert same(form(mask=mask, gain=gain, x=x), expected)
    with pytest.raises(InputError, match="no 'gain'"):
        found.run(x, mask=mask)
    with pytest.raises(InputError, match="tensors and NumPy arrays"):
        found.run(x, mask=mask.numpy(), gain=gain)
    arrays = found.run(x.numpy(), mask=mask.numpy(), gain=np.float32(2.0))
    assert np.array_equal(arrays, expected.numpy())  # type: ignore[arg-type,attr-defined]  # what they are


def test_inputs_without_axes_are_verified() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor, gain: Tensor) -> Tensor:  # type: ignore[override]
            return self.logits(x) * gain

    x, gain = images(), torch.tensor(2.0)
    found = qcompiler.compile(Scaled(), calibration_data=[(x, gain)])
    assert found.verification is not None
    assert found.verification.passed
    assert same(found.run(x, gain), found.simulate(x, gain))


def test_constants_without_axes_in_islands_keep_none(tmp_path: Path) -> None:
    class Held(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.logits(x), 1) * self.seen.cos() + torch.tensor(1.5)

    found = qcompiler.compile(Held(), islands(), calibration_data=[images()])
    assert found.verification is not None
    assert found.verification.passed
    expected = found.simulate(images())
    for form in (found.run, found.module(), qcompiler.load(found.save(tmp_path / "out")).run):
        assert same(form(images()), expected)
    assert found.verify(images()).passed
    scalars = [name for name, array in found.artifact.program.constants.items() if array.shape == ()]
    assert scalars, "the intended case was met"


REFUSED: dict[str, tuple[Shape, str]] = {
    "NaN": (lambda logits, x: torch.log(logits - 100), r"the model itself returns NaN on the example inputs"),
    "infinity": (lambda logits, x: logits / (logits - logits), r"returns (NaN|infinity) on the example inputs"),
    "complex": (lambda logits, x: torch.complex(logits, logits), r"gives complex numbers of torch\.complex64"),
    "complex within": (lambda logits, x: torch.fft.rfft(logits).abs(), "fft_rfft gives complex numbers"),
    "complex constant": (lambda logits, x: (logits * torch.tensor([1j, 2j, 3j])).imag, "mul gives complex numbers"),
    "no tensor": (lambda logits, x: None, r"the model returns None \(at Net.forward\); expected at least one tensor"),
    "a set": (lambda logits, x: [{logits}], r"holds a set \(at \[0\]\)"),
    "NaN as a number": (lambda logits, x: (logits, float("nan")), r"holds the number nan \(at \[1\]\)"),
    "a key that is a number": (lambda logits, x: {0: logits}, "has the dict key 0"),
    "join along the batch": (lambda logits, x: torch.cat([logits, logits], 0), "concatenated along axis 0, the batch"),
    "str": (lambda logits, x: (logits, "cat"), "str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name: str) -> None:
    shape, message = REFUSED[name]
    with pytest.raises((InputError, CaptureError, UnsupportedError), match=message):
        compiled(Net(shape))


def test_a_module_that_gives_no_number_is_named() -> None:
    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(Divides(), nn.ReLU()), nn.Linear(2, 2)).eval()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    with pytest.raises(
        InputError, match=r"returns infinity on the example inputs, first in 1\.0 \(Divides\) \(at 1\.0\)"
    ):
        capture(model, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))


def test_drawn_inputs_that_a_model_cannot_take_are_named() -> None:
    class Logs(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.logits(x.log())

    positive = images().abs() + 1
    with pytest.raises(InputError, match=r"returns NaN on random inputs .*Pass calibration_data"):
        qcompiler.compile(Logs(), example_inputs=positive, verify="off")
    assert compiled(Logs(), positive).run(positive) is not None


@pytest.mark.parametrize("call", [qcompiler.compile, qcompiler.prepare_qat])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        (torch.relu, {}),
        (Net().state_dict(), {}),
        (None, {}),
        ("model.pth", {}),
        (Net(), {"device": "cuda:99"}),
        (Net(), {"device": "tpu"}),
        (Net(), {"device": "meta"}),
        (nn.Linear(3, 2, dtype=torch.complex64).eval(), {}),
    ],
)
def test_other_things_are_refused_before_anything_runs(
    call: Callable[..., object], model: object, options: dict[str, str]
) -> None:
    with pytest.raises(InputError):
        call(model, calibration_data=[images()], **options)


@pytest.fixture(scope="module")
def learning() -> qcompiler.QATModule:
    """A module after a step, on the way to another."""
    module = qcompiler.prepare_qat(Net(RESULTS["tuple"]), calibration_data=[images()], batch_norm="fold")
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    module(images())[0].square().mean().backward()
    optimizer.step()
    module.step()
    return module


def _pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # type: ignore[no-any-return]  # noqa: S301  # of our own making


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)  # what a user does
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]  # likewise


@pytest.mark.parametrize("way", [_pickled, _saved, copy.deepcopy])
def test_a_module_that_learns_can_be_sent(way: Callable[[nn.Module], nn.Module], learning: qcompiler.QATModule) -> None:
    twin = way(learning)
    for training in (False, True):
        assert same(twin.train(training)(images()), learning.train(training)(images()))
    for name, tensor in learning.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    for module in (learning, twin):
        module.zero_grad()
        module(images())[0].square().mean().backward()
    for (name, a), (_, b) in zip(learning.named_parameters(), twin.named_parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]
    files = [compiled_of(module.eval()).artifact.files() for module in (learning, twin)]
    assert files[0] == files[1]


def _outputs(module: nn.Module, queue: Any) -> None:  # of multiprocessing
    queue.put(module(images())[0].detach().numpy())


@pytest.mark.slow
def test_a_spawned_worker_gets_a_module_that_learns(learning: qcompiler.QATModule) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    worker = context.Process(target=_outputs, args=(learning.eval(), queue))
    worker.start()
    found = queue.get()
    worker.join()
    assert np.array_equal(found, learning(images())[0].detach().numpy())


def test_a_deep_graph_can_be_pickled() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(120))).eval()
    found = capture(model, torch.ones(2, 4)).module
    twin = pickle.loads(pickle.dumps(found))  # noqa: S301  # of our own making
    assert [node.name for node in twin.main.nodes] == [node.name for node in found.main.nodes]
