"""The public surface: compile, run, save, load, explain; and what must not change while it works."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler import errors
from qcompiler.backends import onnx_qdq
from qcompiler.ir.graph import Graph
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.lower_to_integer import LowerToInteger
from qcompiler.session.pipeline import default_pipeline, parse_pipeline, print_pipeline
from qcompiler.verification.report import Form
from tests.support.forms import onnx_of
from tests.support.networks import few

ROOT = Path(__file__).parents[2]
DATA = load_data()


@pytest.fixture(scope="module")
def digits() -> qcompiler.Compiled:
    return qcompiler.compile(load_digits_net(), calibration_data=[DATA.calibration_images])


def accuracy(logits: object) -> float:
    assert isinstance(logits, Tensor)
    return float((logits.argmax(1) == DATA.test_labels).double().mean())


def same(a: object, b: object) -> bool:
    """Whether two tensors are equal in every bit."""
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return torch.equal(a, b)


def settled(network: str, **options: float) -> nn.Module:
    """A network of torchvision whose batch-norm statistics belong to its random weights."""
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, network)(**options)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


def test_all_forms_of_the_digits_network_are_one(digits: qcompiler.Compiled) -> None:
    with torch.no_grad():
        expected = accuracy(load_digits_net()(DATA.test_images))
    results = [digits.simulate(DATA.test_images), digits.run(DATA.test_images), digits.module()(DATA.test_images)]
    assert all(torch.equal(results[0], result) for result in results[1:])
    assert accuracy(results[0]) >= expected - 0.005
    runtime = onnx_qdq.run(onnx_of(digits.artifact), [DATA.test_images.numpy()])[0]
    assert abs(accuracy(torch.from_numpy(runtime)) - expected) <= 0.005


NARROW = {"width_mult": 0.35}
"""The layers of a MobileNetV2 with a tenth of its weights."""


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("digits", {}),
        ("mobilenet_v2", NARROW),
        pytest.param("mobilenet_v2", {}, marks=pytest.mark.slow),
        pytest.param("resnet18", {}, marks=pytest.mark.slow),
    ],
    ids=["digits", "narrow mobilenet_v2", "mobilenet_v2", "resnet18"],
)
def test_no_element_differs(network: str, options: dict[str, float], digits: qcompiler.Compiled) -> None:
    generator = torch.Generator().manual_seed(0)
    compiled, side = digits, 32 if options else 64
    if network != "digits":
        data = [torch.randn(8, 3, side, side, generator=generator)]
        compiled = qcompiler.compile(settled(network, **options), calibration_data=data, verify="off")
    for batch in (1, 7):
        x = torch.randn(batch, 3, side, side, generator=generator) if network != "digits" else DATA.test_images[:batch]
        report = compiled.verify(x)
        for name in ("integer graph", "integer program", "C"):
            form = report.form(name)
            assert (form.status, form.differing, form.required) == ("equal", 0, True)
            assert form.tensors > 50
        for name in ("onnxruntime, layer by layer", "onnxruntime unoptimized, layer by layer"):
            form = report.form(name)
            assert form.status in ("equal", "within bound")
            assert form.largest <= 1
            assert form.differing < 0.005 * form.elements
        assert "onnxruntime" in report.integer_macs
        assert report.integer_macs["onnxruntime"] >= 0.95
        assert same(compiled.run(x), compiled.simulate(x))


def test_a_batch_normalized_network_needs_nothing_else() -> None:
    model = settled("mobilenet_v2", **NARROW)
    model.example_input_array = torch.randn(2, 3, 64, 64)
    compiled = qcompiler.compile(model, target="int8_dsp")
    assert compiled.verification is not None
    assert compiled.verification.passed


def test_module_learns_in_train_mode_and_is_exact_in_eval_mode(digits: qcompiler.Compiled) -> None:
    module = digits.module()
    names = dict(module.named_parameters())
    assert "features.0.0.weight" in names
    module.train()
    x = DATA.test_images[:8]
    loss = nn.functional.cross_entropy(module(x), DATA.test_labels[:8])
    loss.backward()
    gradients = {name: p.grad for name, p in names.items() if name.endswith("weight") and p.grad is not None}
    assert gradients
    assert all(bool(g.isfinite().all()) and float(g.abs().sum()) > 0 for g in gradients.values())
    module.eval()
    assert same(module(x), digits.run(x))
    with torch.no_grad():
        names["features.0.0.weight"].mul_(-1)
    assert not same(module(x), digits.run(x)), "the parameters belong to the module"


def test_integer_in_integer_out(digits: qcompiler.Compiled) -> None:
    program = digits.artifact.program.program
    quantizer = next(item for item in program.instructions if item.op == "quantize")
    grid = program.tensors[quantizer.output]
    x = DATA.test_images[:5]
    codes = torch.clamp(torch.round(x / grid.scale[0]) + grid.zero_point[0], -128, 127).to(torch.int8)
    (out,) = digits.run_integer(codes)
    last = next(item for item in program.instructions if item.output == program.outputs[0])
    final = program.tensors[last.inputs[0]]
    assert out.dtype == torch.int8
    assert same((out.float() - final.zero_point[0]) * final.scale[0], digits.run(x))
    with pytest.raises(errors.InputError, match="element type"):
        digits.run_integer(x)


def test_labels_fall_away_and_an_iterator_is_read_once() -> None:
    reads = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal reads
        for start in range(0, 96, 32):
            reads += 1
            yield DATA.calibration_images[start : start + 32], DATA.train_labels[start : start + 32]

    once = qcompiler.compile(few(), calibration_data=batches(), verify="off")
    assert reads == 3
    again = qcompiler.compile(few(), calibration_data=list(batches()), verify="off")
    by_forward = qcompiler.compile(
        few(),
        calibration_data=[{"image": image, "label": label} for image, label in batches()],
        forward=lambda model, batch: model(batch["image"]),  # type: ignore[index]
        verify="off",
    )
    assert once.artifact.files() == again.artifact.files() == by_forward.artifact.files()


def test_calibration_does_not_depend_on_the_order_of_the_batches() -> None:
    batches = list(DATA.calibration_images.split(40))
    forward = qcompiler.compile(few(), calibration_data=batches, example_inputs=batches[0], verify="off")
    backward = qcompiler.compile(few(), calibration_data=batches[::-1], example_inputs=batches[0], verify="off")
    assert forward.artifact.program.program_json() == backward.artifact.program.program_json()
    assert forward.artifact.program.weights() == backward.artifact.program.weights()


def test_model_mode_random_state_and_settings_stay() -> None:
    model = few()
    before = copy.deepcopy(model.state_dict())
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    qcompiler.compile(model, calibration_data=[DATA.calibration_images])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_save_and_load(digits: qcompiler.Compiled, tmp_path: Path) -> None:
    folder = digits.save(tmp_path / "out")
    expected = {"manifest.json", "model.onnx", "encodings.json", "program.json", "provenance.json", "report.html"}
    expected |= {"weights.safetensors", "c"}
    assert {path.name for path in folder.iterdir()} == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    loaded = qcompiler.load(folder)
    assert same(loaded.run(DATA.test_images), digits.run(DATA.test_images))
    assert loaded.explain("features.0.0") == digits.explain("features.0.0")
    report = loaded.verify()
    assert report.passed
    assert report.form("exact simulation").status == "not run"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["verification"]["passed"] is True
    source = {f"c/{path.name}" for path in (folder / "c").iterdir()}
    assert {"c/digitsnet.h", "c/model.c", "c/Makefile"} <= source
    assert set(manifest["sha256"]) == source | expected - {"manifest.json", "c"}
    assert set(manifest["forms"]) == {"integer program", "ONNX", "C"}
    assert set(manifest["forms"]["C"]["files"]) == source
    digits.save(folder)  # an artifact may be replaced


@pytest.mark.parametrize(
    "name", ["model.onnx", "weights.safetensors", "program.json", "provenance.json", "c/kernels.c"]
)
def test_an_altered_file_is_found(name: str, digits: qcompiler.Compiled, tmp_path: Path) -> None:
    folder = digits.save(tmp_path / "out")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(errors.ArtifactError, match=f"{name} was altered"):
        qcompiler.load(folder)
    (folder / name).unlink()
    with pytest.raises(errors.ArtifactError, match=f"{name} is missing"):
        qcompiler.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is not JSON"),
        ("[]", "another version"),
        ('{"schema": "qcompiler.artifact/9"}', "another version"),
    ],
)
def test_a_broken_manifest_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ArtifactError, match=r"contains no manifest\.json"):
        qcompiler.load(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(errors.ArtifactError, match=message):
        qcompiler.load(tmp_path)


class Wrong(Pass):
    """Breaks the program without the contracts noticing: lowers, then shifts a bias."""

    name = "wrong"
    stages = LowerToInteger.stages
    becomes = LowerToInteger.becomes

    def run(self, graph: Graph, context: PassContext) -> None:
        LowerToInteger().run(graph, context)
        name = next(name for name in graph.module.tensors if name.endswith(".bias") and ".q." in name)
        graph.module.tensors[name] = graph.module.tensors[name] + 5000


def broken_pipeline(monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    # The manager would find it as well: its validation is switched off to see the verifier alone.
    monkeypatch.setattr("qcompiler.passes.manager.check", lambda *_: {})
    return [Wrong() if isinstance(item, LowerToInteger) else item for item in default_pipeline()]


def test_a_failed_verification_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"passes": broken_pipeline(monkeypatch), "calibration_data": [DATA.calibration_images]}
    with pytest.raises(errors.VerificationError, match=r"integer graph: \d+ of .* first in %features"):
        qcompiler.compile(few(), output=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="the forms of the compiled model disagree"):
        compiled = qcompiler.compile(few(), verify="warn", **options)  # type: ignore[arg-type]
    assert compiled.verification is not None
    assert not compiled.verification.passed
    unverified = qcompiler.compile(few(), verify="off", **options)  # type: ignore[arg-type]
    assert unverified.verification is None


def test_a_form_that_did_not_run_is_not_verified() -> None:
    form = Form("c", "not run", True, reason="no compiler")
    assert not qcompiler.Report("exact simulation", (form,), 1).passed
    assert str(form) == "c: not run (no compiler)"


_COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
assert qcompiler.__file__.startswith(sys.argv[1]), qcompiler.__file__
qcompiler.compile(load_digits_net(), calibration_data=[load_data().calibration_images], output=sys.argv[2])
"""


def test_a_process_from_another_path_gives_the_same_bytes(tmp_path: Path, digits: qcompiler.Compiled) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("qcompiler", "passes", "backends", "examples"):
        (other / name).symlink_to(ROOT / name) if name == "examples" else _copy(ROOT / name, other / name)
    command = [sys.executable, "-P", "-c", _COMPILE, str(other), str(tmp_path / "b")]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    digits.save(tmp_path / "a")
    names, others = (
        sorted(str(path.relative_to(tmp_path / output)) for path in (tmp_path / output).rglob("*") if path.is_file())
        for output in ("a", "b")
    )
    assert names == others
    assert "c/model.c" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        assert str(ROOT).encode() not in (tmp_path / "a" / name).read_bytes(), name


def _copy(source: Path, destination: Path) -> None:
    import shutil

    shutil.copytree(source, destination, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def test_pipelines_are_text() -> None:
    passes = default_pipeline()
    assert parse_pipeline(print_pipeline(passes)) == passes
    assert parse_pipeline("default") == passes
    (changed,) = parse_pipeline("calibrate-activations{method=mse, alpha=4.5}")
    assert str(changed) == "calibrate-activations{method=mse, alpha=4.5}"


def test_the_best_effort_saves_four_bit_weights_of_one_scale() -> None:
    """The accuracy is that of the integer program; every form agrees on it."""
    model, data = load_digits_net(), [DATA.calibration_images[:64], DATA.calibration_images[64:128]]
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4)
    plain = qcompiler.compile(model, target, calibration_data=data, effort="fast", verify="off")
    best = qcompiler.compile(model, target, calibration_data=data, effort="best")
    assert best.verification is not None
    assert best.verification.passed
    assert accuracy(plain.run(DATA.test_images)) < 0.3
    assert accuracy(best.run(DATA.test_images)) > 0.985
    assert same(best.run(DATA.test_images), best.simulate(DATA.test_images))
    names = [record.pass_name for record in best.records]
    assert names.index("cross-layer-equalization") < names.index("insert-quantizers") < names.index("adaround")
    assert names.index("adaround") < names.index("calibrate-activations"), "activations have eight bits"
    per_channel = target.override(per_channel=True)
    records = qcompiler.compile(few(), per_channel, calibration_data=data, effort="best", verify="off").records
    assert "replace-relu6" not in [record.pass_name for record in records], "a scale per channel needs no free run"


@pytest.mark.slow
def test_the_best_effort_gives_activations_of_few_bits_their_ranges_before_it_rounds_weights() -> None:
    model, data = load_digits_net(), [DATA.calibration_images[:64]]
    with torch.no_grad():
        exact = model(DATA.test_images)
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4, activation_bits=4)
    weights_first = qcompiler.compile(
        model, target, calibration_data=data, passes=default_pipeline("best", activation_bits=8), verify="off"
    )
    ranges_first = qcompiler.compile(model, target, calibration_data=data, effort="best", verify="off")
    noises = {}
    for order, compiled in (("ranges first", ranges_first), ("weights first", weights_first)):
        names = [record.pass_name for record in compiled.records]
        first = names.index("calibrate-activations") < names.index("adaround")
        assert first == (order == "ranges first")
        found = compiled.run(DATA.test_images)
        noises[order] = float((found - exact).square().mean())
    assert noises["ranges first"] < 0.95 * noises["weights first"]


def test_explain_and_report(digits: qcompiler.Compiled, tmp_path: Path) -> None:
    text = digits.explain("features.0.0")
    assert "fold-batch-norm" in text
    assert "lower-to-integer" in text
    assert "integer program" in digits.report(tmp_path / "report.html").read_text()
    page = digits.artifact.report()
    assert "<script" not in page
    assert "http" not in page


def test_overrides_reach_names_paths_globs_and_ops() -> None:
    def widths(**options: object) -> set[str]:
        compiled = qcompiler.compile(
            few(),
            calibration_data=[DATA.calibration_images[:64]],
            verify="off",
            **options,  # type: ignore[arg-type]
        )
        tensors = compiled.artifact.program.program.tensors
        return {name for name, item in tensors.items() if item.dtype == "i16"}

    assert widths() == set()
    assert len(widths(overrides={"features.0": 16})) == 1
    assert widths(overrides={"features.0.*": 16}) == widths(overrides={"features.0": 16})
    assert len(widths(overrides={"add": 16})) == 2
    assert widths(overrides={"*": 16, "add": 8, "features.0": 8}) >= widths(overrides={"classifier": 16})


def test_a_saved_exported_program_compiles(tmp_path: Path, digits: qcompiler.Compiled) -> None:
    x = DATA.calibration_images[:4]
    program = torch.export.export(load_digits_net(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=65536)},))
    torch.export.save(program, tmp_path / "digits.pt2")
    from_file = qcompiler.compile(tmp_path / "digits.pt2", calibration_data=[DATA.calibration_images], verify="off")
    assert from_file.artifact.program.weights() == digits.artifact.program.weights()
    assert same(from_file.run(DATA.test_images), digits.run(DATA.test_images))


def test_what_later_work_brings_is_refused_by_name() -> None:
    with pytest.raises(errors.NotSupportedYetError, match="not supported yet"):
        qcompiler.compile("model.keras")
