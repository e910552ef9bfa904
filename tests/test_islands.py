"""Models of which a part runs in float: all forms agree, files hold the islands, and what cannot be one is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.backends import onnx_qdq
from qcompiler.errors import ArtifactError, GraphError, InputError, UnsupportedError
from qcompiler.frontends import rules_recurrent
from qcompiler.ops.custom import find_function, name_of
from tests.support.forms import onnx_of

FLOAT = qcompiler.load_target("int8_dsp").override(fallback="float")


class Attention(nn.Module):
    """A convolution, attention, and the largest elements with their places, which an integer core does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu(self.stem(x)).flatten(2).transpose(1, 2)
        z = self.norm(y)
        z = y + self.attention(z, z, z, need_weights=False)[0]
        best, where = (part[:, :3] for part in torch.sort(z.mean(1), descending=True))
        return self.head(z.mean(1)) + best.sum(1, keepdim=True), where


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(batch))


@pytest.fixture(scope="module")
def attention() -> tuple[nn.Module, qcompiler.Compiled]:
    torch.manual_seed(0)
    model = Attention().eval()
    return model, qcompiler.compile(model, FLOAT, calibration_data=[images()])


def test_a_view_of_a_tensor_that_lives_on_is_no_result_of_its_own() -> None:
    torch.manual_seed(0)
    # Attention turns the axes of one image without moving a byte, and the following sum reads the turned image.
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    compiled = qcompiler.compile(model, FLOAT, calibration_data=[torch.randn(4, 7, 32)])
    report = compiled.verification
    assert report is not None
    assert report.form("integer program").status == "equal"


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_all_forms_agree_at_any_batch(attention: tuple[nn.Module, qcompiler.Compiled], batch: int) -> None:
    model, compiled = attention
    x = images(batch)
    report = compiled.verify(x)
    assert report.passed
    assert [form.status for form in report.forms[:2]] == ["equal", "equal"]
    exact, found = compiled.simulate(x), compiled.run(x)
    assert isinstance(exact, tuple)
    assert isinstance(found, tuple)
    assert torch.equal(exact[0], found[0])
    assert torch.equal(exact[1], found[1])
    assert found[1].dtype == torch.int64
    with torch.no_grad():
        expected = model(x)[0]
    assert float((found[0] - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_the_files_hold_the_islands(attention: tuple[nn.Module, qcompiler.Compiled], tmp_path: Path) -> None:
    _, compiled = attention
    islands = compiled.artifact.islands
    assert islands
    assert sum(item["elements"] for item in islands) < 1
    assert any("sort" in item["why"] for item in islands)
    assert "float island" in str(compiled.diagnostics[-1])
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    assert loaded.islands == islands
    assert loaded.verify().passed
    x = images(3)
    for a, b in zip(loaded.run(x), compiled.run(x), strict=True):  # type: ignore[call-overload]
        assert torch.equal(a, b)
    assert "Float islands" in (tmp_path / "out" / "report.html").read_text()
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert {"Softmax", "TopK", "QuantizeLinear", "Conv"} <= operators


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path, attention: tuple[nn.Module, qcompiler.Compiled]) -> None:
    script = (
        "import torch, qcompiler, sys\n"
        "from tests.test_islands import Attention, FLOAT, images\n"
        "torch.manual_seed(0)\n"
        "qcompiler.compile(Attention().eval(), FLOAT, calibration_data=[images()], output=sys.argv[1])\n"
    )
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-c", script, str(other)], check=True, cwd=Path(__file__).parents[1])
    _, compiled = attention
    mine = compiled.save(tmp_path / "mine")
    assert sorted(path.name for path in mine.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in sorted(path for path in mine.rglob("*") if path.is_file()):
        assert path.read_bytes() == (other / path.relative_to(mine)).read_bytes(), path.name


def test_the_module_trains_through_an_island(attention: tuple[nn.Module, qcompiler.Compiled]) -> None:
    _, compiled = attention
    module = compiled.module()
    x = images(2)
    assert torch.equal(module(x)[0], compiled.run(x)[0])  # type: ignore[index]
    module.train()(x)[0].sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert float(gradients["norm.weight"].abs().sum()) > 0
    assert float(gradients["stem.weight"].abs().sum()) > 0, "the gradient passes through the island"


class Recurrent(nn.Module):
    """An LSTM over ten steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(3, 8, 3, padding=1), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.conv(x).relu().transpose(1, 2))
        result: Tensor = self.head(y[:, -1])
        return result


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.embedding(x).mean(1))
        return result


def normalized() -> nn.Module:
    """Sums whose order follows the strides of the images: those of the program lie channels last."""
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.InstanceNorm2d(8))
    return nn.Sequential(*layers, nn.Softplus(2), nn.AdaptiveMaxPool2d(3))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "a recurrent network of more steps than are unrolled": (Recurrent, numbers(4, 3, 10)),
    "norms of other kinds": (normalized, numbers(4, 3, 8, 8)),
}


def test_words_are_rows_of_codes_where_float_is_allowed_too() -> None:
    torch.manual_seed(0)
    x = torch.arange(24).reshape(4, 6) % 20
    compiled = qcompiler.compile(Words().eval(), FLOAT, calibration_data=[x])
    assert not compiled.artifact.islands


@pytest.mark.parametrize("name", MODELS)
def test_models_that_no_integer_core_takes_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_recurrent, "MOST_STEPS", 8)
    torch.manual_seed(0)
    make, x = MODELS[name]
    model = make().eval()
    compiled = qcompiler.compile(model, FLOAT.override(per_channel=True), calibration_data=[x])
    assert compiled.verification is not None
    assert [form.status for form in compiled.verification.forms[:2]] == ["equal", "equal"]
    assert compiled.artifact.islands
    bigger = torch.cat([x, x.flip(0), x])
    found = compiled.run(bigger)
    assert torch.equal(found, compiled.simulate(bigger))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = model(bigger)
    # 7 dB and more: weights are random, and a transformer of noise has outliers that cost it most of its bits.
    assert float((found - expected).square().sum() / expected.square().sum()) < 0.2


def test_a_layer_that_is_wanted_in_float() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    compiled = qcompiler.compile(model, FLOAT, calibration_data=[images()], overrides={"3": "float"})
    assert [item["name"] for item in compiled.artifact.islands] == ["3"]
    assert compiled.artifact.islands[0]["macs"] == 5 * 64 / (5 * 64 + 4 * 27 * 16)
    assert compiled.verification is not None
    assert compiled.verification.passed
    x = images(2)
    with torch.no_grad():
        rest = nn.functional.linear(compiled.quantized.main.module.tensors["3.weight"], torch.ones(1, 64))
    assert rest.shape == (5, 1), "the weight is unchanged"
    assert "3.weight.q" not in compiled.artifact.program.constants
    assert torch.equal(compiled.simulate(x), compiled.run(x))  # type: ignore[arg-type]


def test_an_input_that_an_island_reads_is_given_in_float() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.conv(x) + torch.cumsum(x, 1)
            return result

    torch.manual_seed(0)
    compiled = qcompiler.compile(Reads().eval(), FLOAT, calibration_data=[images()])
    x = images(2)
    codes = compiled.run_integer(x)[0]
    grid = next(iter(compiled.integer.main.outputs)).producer
    assert grid is not None
    quant = grid.inputs[0].type.quant
    assert quant is not None
    real = (codes.to(torch.float32) - quant.zero_point[0]) * quant.scale[0]
    assert torch.equal(real, compiled.run(x))  # type: ignore[arg-type]


def without_onnx(compiled: qcompiler.Compiled) -> bool:
    """Whether ONNX has no form of a float island, for that reason, and the other forms stand."""
    assert compiled.verification is not None
    form, compared = compiled.artifact.forms["ONNX"], compiled.verification.form("ONNX")
    assert not form.files
    assert compared.reason == form.reason
    assert compiled.verification.passed
    assert compiled.verification.form("integer program").status == "equal"
    return form.reason.startswith("torch.onnx cannot write the float island @")


def test_what_the_exporter_cannot_write_has_no_onnx_form() -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.special.bessel_j0(x)
            return result

    assert without_onnx(qcompiler.compile(Strange().eval(), FLOAT, calibration_data=[images()]))


@pytest.mark.parametrize("function", [torch.round, torch.isnan, torch.isfinite])
def test_integers_that_the_exporter_gives_to_operators_on_reals(function: Callable[[Tensor], Tensor]) -> None:
    """The exporter writes Round of int64, which ONNX does not allow."""

    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), function(ids)

    ids = torch.arange(6).reshape(2, 3)
    assert without_onnx(qcompiler.compile(Strange().eval(), FLOAT, calibration_data=[(images(2), ids)]))


def test_a_damaged_island_is_refused(attention: tuple[nn.Module, qcompiler.Compiled]) -> None:
    from qcompiler.backends.integer import Executor
    from qcompiler.program.files import ProgramFiles

    files = attention[1].artifact.program
    name, text = next(iter(files.program.islands.items()))
    stranger = re.sub(r'function = "[^"]+"', 'function = "os.system"', text)
    for broken in ("", stranger, text.replace("return %", "return %no")):
        program = files.program.model_copy(update={"islands": {**files.program.islands, name: broken}})
        with pytest.raises(ArtifactError, match=r"the island cannot be read.*islands\."):
            Executor(ProgramFiles(program, files.constants)).run([images(1).numpy()])
    with pytest.raises(ArtifactError, match="the island is missing"):
        ProgramFiles(files.program.model_copy(update={"islands": {}}), files.constants)


@pytest.mark.parametrize(
    "name", ["torch.load", "torch.save", "torch.compile", "os.system", "builtins.eval", "torch.Tensor.__reduce__", "operator.methodcaller", "nowhere::op", "torch"]
)  # fmt: skip
def test_a_graph_names_no_function_but_those_of_tensors(name: str) -> None:
    with pytest.raises(GraphError, match="there is no function"):
        find_function(name)


@pytest.mark.parametrize(
    "function",
    [torch.cumsum, functional.softmax, torch.Tensor.cumsum, torch.ops.aten.cumsum.default, torch.linalg.norm],
)
def test_a_function_is_found_by_its_own_name(function: object) -> None:
    name = name_of(function)
    assert name is not None
    assert find_function(name) is function


@torch.library.custom_op("qcompiler_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    """An operator of the user."""
    return x * 0.5


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_of_ones_own_runs_but_has_no_onnx_form() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = halve(torch.relu(x))
            return result

    assert without_onnx(qcompiler.compile(Own().eval(), FLOAT, calibration_data=[images()]))
    with pytest.raises(
        UnsupportedError, match=r"(?s)'qcompiler_tests::halve' has no .*rule\(\"qcompiler_tests::halve\"\)"
    ):
        qcompiler.compile(Own().eval(), calibration_data=[images()])


def test_a_wish_for_float_that_names_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="matches no node"):
        qcompiler.compile(nn.ReLU().eval(), FLOAT, calibration_data=[images()], overrides={"nothing": "float"})


def test_onnx_runtime_gives_what_the_program_gives(attention: tuple[nn.Module, qcompiler.Compiled]) -> None:
    _, compiled = attention
    x = images(5)
    for optimize in (True, False):
        found = onnx_qdq.run(onnx_of(compiled.artifact), [x.numpy()], optimize=optimize)
        real = compiled.run(x)
        assert isinstance(real, tuple)
        assert float(np.abs(found[0] - real[0].numpy()).max()) < 0.05


class Indices(nn.Module):
    """Rows of a table by indices that are computed between codes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)
        self.linear = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(functional.relu(x).long().clamp(max=1))
        return self.linear(rows).flatten(0, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["int8_dsp", "nvdla", "int16x8"])
def test_an_island_that_takes_only_some_codes_is_verified_on_those_of_the_model(target: str) -> None:
    """No table has the rows that random codes name; and the batch of the output is eight times that of the input."""
    x = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(72)) + 5
    hardware = qcompiler.load_target(target).override(fallback="float")
    compiled = qcompiler.compile(Indices().eval(), hardware, calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    result = compiled.run(x)
    assert isinstance(result, Tensor) and result.shape == (16, 2, 8)
