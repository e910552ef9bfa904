"""The programs for ImageNet, on twenty rendered images and a small network of torchvision."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

import qcompiler
from examples.imagenet import ptq, qat
from examples.imagenet.data import DataError, Preprocessing, batches, draw, read_part
from examples.imagenet.networks import CheckpointError, NetworkError, load_network, read_checkpoint
from examples.imagenet.options import exit_status
from examples.imagenet.qat_tables import oscillations
from examples.imagenet.results import Store, accuracy
from examples.imagenet.training import Feed, Group

ROOT = Path(__file__).parents[2]
CLASSES = ("n001", "n002", "n003", "n004")
PER_CLASS = 5
SMALL: dict[str, Any] = {"width_mult": 0.25, "inverted_residual_setting": [[1, 8, 1, 1], [2, 8, 2, 2]]}
NETWORK = "torchvision:mobilenet_v2"
MAIN = {"ptq": ptq.main, "qat": qat.main}


def rendered(label: int, number: int) -> Image.Image:
    """Stripes whose width and direction tell the class, under noise."""
    rng = np.random.default_rng(10 * label + number)
    rows, columns = np.mgrid[0:40, 0:48]
    stripes = np.sin((columns if label % 2 else rows) / (1.5 if label < 2 else 4.0) + rng.uniform(0, 6))
    pixels = 128 + 70 * stripes[..., None] + rng.normal(0, 110, (40, 48, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def small() -> nn.Module:
    network: nn.Module = models.mobilenet_v2(num_classes=len(CLASSES), **SMALL)
    return network


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes with five images each in val/, four in train/, and a checkpoint that learned a little."""
    found = tmp_path_factory.mktemp("imagenet")
    for part, shift, count in (("val", 0, PER_CLASS), ("train", PER_CLASS, 4)):
        for label, name in enumerate(CLASSES):
            folder = found / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                rendered(label, shift + number).save(folder / f"{number}.JPEG")
    torch.manual_seed(0)
    model = small().train()
    preprocessing = Preprocessing(36, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images, labels = next(batches(read_part(found / "train", 4), preprocessing, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, found / "small.pth")
    return found


def options(root: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--network", NETWORK, "--checkpoint", str(root / "small.pth"), "--classes", "4", "--calibration", "8"]
    return [str(root), *fixed, *size(), "--output", str(output), *more]


def size() -> list[str]:
    return ["--network-options", json.dumps(SMALL), "--resize", "36", "--crop", "32"]


def results(output: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
    return found


PTQ = ("--tables", "methods", "--widths", "W8A8", "W4A8", "--only", "per channel: plain")


def test_interrupted_and_shared_runs_end_in_the_same_bytes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    measure, calls = ptq._measure, []

    def stops(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ptq, "_measure", stops)
        assert ptq.main(options(root, one, *PTQ)) == 130
        assert "the same call continues" in capsys.readouterr().err
        assert len(list((one / "cells").iterdir())) == 2
        assert ptq.main(options(root, one, *PTQ)) == 0
    assert len(calls) == 4, "finished cells are not measured again"
    assert ptq.main(options(root, two, *PTQ, "--shard", "1/2", "--batch", "7")) == 0
    assert "..." in capsys.readouterr().out
    assert ptq.main(options(root, two, *PTQ, "--shard", "2/2")) == 0
    printed = capsys.readouterr().out
    for file in ("ptq.json", "ptq.md", "draw-0.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert printed == (one / "ptq.md").read_text(encoding="utf-8")

    table = results(one, "ptq")["tables"][0]
    assert table["columns"] == ["W8A8", "W4A8"]
    line = next(item for item in table["lines"] if item["labels"] == ["per channel: plain"])
    cell = results(one, "ptq")["cells"][line["places"][1][0]]
    assert (cell["width"], cell["per_channel"], cell["images"]) == ("W4A8", True, 20)
    row = next(text for text in printed.splitlines() if text.startswith("| per channel: plain"))
    assert row.endswith(f" {100 * cell['top1']:.2f} |")
    assert cell["top1"] == pytest.approx(_own_accuracy(root, cell, results(one, "draw-0")))
    assert 0.3 < cell["top1"] <= 1.0 and cell["top5"] == 1.0


def _own_accuracy(root: Path, cell: dict[str, Any], drawn: dict[str, Any]) -> float:
    """Top-1 of the integer program of a cell, without the code of the example but for the preprocessing."""
    model = small().eval()
    model.load_state_dict({k.removeprefix("module."): v for k, v in _saved(root)["state_dict"].items()})
    preprocess = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms(resize_size=36, crop_size=32)
    draws = drawn["calibration"]
    pictures = [Image.open(root / draws["from"] / name).convert("RGB") for name in draws["images"]]
    compiled = qcompiler.compile(
        model,
        qcompiler.load_target("int8_dsp").override(weight_bits=4, per_channel=True),
        calibration_data=[torch.stack([preprocess(picture) for picture in pictures])],
        pipeline=cell["pipeline"],
        verify="off",
    )
    right = 0
    for label, name in enumerate(CLASSES):
        paths = sorted((root / "val" / name).iterdir())
        logits = compiled.run(torch.stack([preprocess(Image.open(path).convert("RGB")) for path in paths]))
        assert isinstance(logits, Tensor)
        right += int((logits.argmax(1) == label).sum())
    return right / (PER_CLASS * len(CLASSES))


def _saved(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(root / "small.pth", weights_only=True)
    return found


QAT = ("--widths", "W4A4", "--only", "LSQ_freezing", "--epochs", "1", "--batch", "4")


def test_a_training_continues_to_the_same_bits_and_ends_in_its_artifact(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert qat.main(options(root, one, *QAT, "--minutes", "0")) == 0
    assert "1 of 2 cells are missing" in capsys.readouterr().err
    assert qat.main(options(root, one, *QAT)) == 0
    assert "continues after step 1 of 4" in capsys.readouterr().err
    assert qat.main(options(root, two, *QAT, "--save-every", "3")) == 0
    assert "continues" not in capsys.readouterr().err
    for file in ("qat.json", "qat.md"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    state, other = (next(folder.glob("*/state.safetensors")) for folder in (one, two))
    assert state.read_bytes() == other.read_bytes()

    name, cell = next(item for item in results(one, "qat")["cells"].items() if "LSQ" in item[0])
    assert len(cell["loss"]) == 1 and {"start", "before", "oscillating", "top1", "top5"} <= set(cell)
    artifact = qcompiler.load(one / name / "artifact")
    assert (artifact.target.weight_bits, artifact.target.activation_bits) == (4, 4)
    network = load_network(NETWORK, root / "small.pth", outputs=4, options=SMALL, resize=36, crop=32)
    found = accuracy(artifact.run, batches(read_part(root / "val", 4), network.preprocessing, 20))
    assert found.record()["top1"] == cell["top1"]

    shutil.rmtree(two / "cells")
    other.write_bytes(other.read_bytes()[:1000])
    assert qat.main(options(root, two, *QAT)) == 2
    assert "Remove it to begin this training anew" in capsys.readouterr().err
    assert qat.main(options(root, two, *QAT, "--fresh")) == 0
    assert (one / "qat.json").read_bytes() == (two / "qat.json").read_bytes()


def test_a_simulation_has_figures_and_no_artifact(root: Path, tmp_path: Path) -> None:
    more = ("--widths", "W3A3", "--only", "LSQ-keep", "--epochs", "1", "--batch", "8", "--target", "lsq_paper")
    assert qat.main(options(root, tmp_path, *more)) == 0
    name, cell = next(item for item in results(tmp_path, "qat")["cells"].items() if "LSQ" in item[0])
    assert cell["images"] == 20
    assert not (tmp_path / name / "artifact").exists()
    assert "Accuracy of the simulations" in (tmp_path / "qat.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_processes_share_a_training(root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "examples.imagenet.qat", *options(root, tmp_path / "out", *QAT)]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    cells = results(tmp_path / "out", "qat")["cells"].values()
    assert [cell["images"] for cell in cells] == [20, 20]


def test_settings_of_the_paper_on_oscillations() -> None:
    def figures(network: str, width: str, method: str) -> tuple[float, float, int]:
        found = oscillations(network, width)[method]
        return found.rate, found.weight_decay, found.epochs

    lite = "timm:efficientnet_lite0"
    assert figures("torchvision:mobilenet_v2", "W3A3", "LSQ + freezing") == (0.01, 2.5e-5, 90)
    assert figures("torchvision:mobilenet_v2", "W4A4", "LSQ + freezing") == (0.0033, 5e-5, 90)
    assert figures("torchvision:mobilenet_v2", "W4A4", "LSQ + dampening") == (0.0033, 2.5e-5, 90)
    assert figures(lite, "W4A4", "LSQ + dampening") == (0.0033, 1e-4, 90)
    for network, width, last in ((NETWORK, "W3A3", 0.011), (NETWORK, "W4A4", 0.01), (lite, "W3A3", 0.005)):
        freezing = oscillations(network, width)["LSQ + freezing"].way.freezing
        assert freezing is not None and callable(freezing.threshold)
        assert [freezing.threshold(step, 100) for step in (24, 25, 100)] == pytest.approx([0.0, 0.1, last])


def test_an_epoch_begins_anywhere_with_the_same_images(root: Path) -> None:
    preprocessing = Preprocessing(36, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    part = read_part(root / "train", 4)
    feed = Feed(part, preprocessing, 4, 0, seed=1, group=Group(0, 1, torch.device("cpu")))
    whole, rest = list(feed.epoch(2)), list(feed.epoch(2, begin=2))
    assert len(whole) == 4 and len(rest) == 2
    for (images, labels), (other, others) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, other) and torch.equal(labels, others)
    assert not torch.equal(whole[0][0], next(iter(feed.epoch(3)))[0])
    halves = [Feed(part, preprocessing, 4, 0, seed=1, group=Group(r, 2, torch.device("cpu"))) for r in (0, 1)]
    first = [next(iter(half.epoch(2)))[0] for half in halves]
    assert torch.equal(torch.stack(first, 1).flatten(0, 1), whole[0][0])


def test_draws_are_disjoint_and_follow_the_seed(root: Path) -> None:
    val, train = read_part(root / "val", 4), read_part(root / "train", 4)
    own = draw(val, None, calibration=8, images=None, seed=3)
    assert own.source == "val" and len(own.measured) == 12
    assert set(own.calibration.names).isdisjoint(own.measured.names)
    assert own == draw(val, None, calibration=8, images=None, seed=3)
    assert own != draw(val, None, calibration=8, images=None, seed=4)
    few, other = (draw(val, train, calibration=8, images=10, seed=seed) for seed in (0, 1))
    assert few.measured == other.measured and few.calibration != other.calibration
    assert len(set(few.measured.labels)) > 2, "a subset is drawn, not the first classes"


def test_a_file_of_labels_gives_the_labels_of_class_folders(root: Path, tmp_path: Path) -> None:
    val = read_part(root / "val", 4)
    flat, lines = tmp_path / "val", []
    flat.mkdir()
    for number, (name, label) in enumerate(zip(val.names, val.labels, strict=True)):
        shutil.copy(root / "val" / name, flat / f"{number:02}.jpg")
        lines.append(f"{number:02}.jpg {CLASSES[label] if number % 2 else label}")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(lines), encoding="utf-8")
    assert read_part(flat, 4, classes=CLASSES, labels=labels).labels == val.labels
    reversed_names = read_part(root / "val", 5, classes=("other", *CLASSES))
    assert reversed_names.labels == tuple(label + 1 for label in val.labels)


def test_preprocessing_is_that_of_torchvision(root: Path, tmp_path: Path) -> None:
    image = rendered(0, 0).resize((300, 280))
    weights = models.MobileNet_V2_Weights
    for entry in (weights.IMAGENET1K_V1, weights.IMAGENET1K_V2):
        checkpoint = tmp_path / Path(entry.url).name
        shutil.copy(root / "small.pth", checkpoint)
        network = load_network(NETWORK, checkpoint, outputs=4, options=SMALL)
        assert torch.equal(network.preprocessing.centred(image), entry.transforms()(image))
        assert f"torchvision's {entry.name}, by the file name" in str(network.preprocessing)
    named = load_network(NETWORK, root / "small.pth", outputs=4, options=SMALL, weights="IMAGENET1K_V1")
    assert (named.preprocessing.resize, named.preprocessing.crop) == (256, 224)


def test_preprocessing_is_that_of_timm(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {"input_size": (3, 224, 224), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    timm, data = types.ModuleType("timm"), types.ModuleType("timm.data")
    contents = {
        "is_model": lambda name: name == "small",
        "list_models": lambda: ["small"],
        "create_model": lambda name, **options: models.mobilenet_v2(num_classes=options["num_classes"], **SMALL),
    }
    for name, function in contents.items():
        setattr(timm, name, function)
    data.resolve_data_config = lambda arguments, model: config | {"crop_pct": 0.9}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    found = load_network("timm:small", root / "small.pth", outputs=4).preprocessing
    assert (found.resize, found.crop, found.interpolation, found.squash) == (248, 224, "bicubic", False)
    with pytest.raises(NetworkError, match="Did you mean small"):
        load_network("timm:smal", root / "small.pth", outputs=4)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match="pip install timm"):
        load_network("timm:small", root / "small.pth", outputs=4)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints_are_unwrapped(wrapper: str, prefix: str, tmp_path: Path) -> None:
    state: dict[str, Any] = {f"{prefix}layer.weight": torch.ones(2)}
    if wrapper:
        state = {wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(state, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth")) == ["layer.weight"]


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert list(read_checkpoint(tmp_path / "a.safetensors")) == ["weight"]
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="objects other than tensors"):
        read_checkpoint(tmp_path / "module.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="contains no weights"):
        read_checkpoint(tmp_path / "empty.pth")


def test_a_checkpoint_that_does_not_fit_names_keys_and_shapes(root: Path, tmp_path: Path) -> None:
    state = read_checkpoint(root / "small.pth")
    state["classifier.1.bias"] = torch.zeros(7)
    state["extra"] = state.pop("classifier.1.weight")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_network(NETWORK, tmp_path / "a.pth", outputs=4, options=SMALL)
    for text in (
        "missing: classifier.1.weight;",
        "unexpected: extra;",
        "wrong shapes: classifier.1.bias is [7] in the file and [4] in the network",
    ):
        assert text in str(caught.value)


def test_equal_outputs_are_ranked_by_index() -> None:
    logits = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]])
    found = accuracy(lambda x: logits, [(torch.zeros(3, 1), torch.tensor([0, 1, 6]))])
    assert (found.first, found.few, found.images) == (1, 2, 3)


def test_train_and_val_have_the_same_classes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "images"
    shutil.copytree(root, own)
    (own / "val" / "n002").rename(own / "val" / "n009")
    assert ptq.main(options(own, tmp_path / "out")) == 2
    assert "different class folders, such as n002" in capsys.readouterr().err


def test_errors_are_one_line_and_lose_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "images"
    shutil.copytree(root, own)
    output = tmp_path / "out"
    command = options(own, output, "--only", "no such cell")
    assert ptq.main(command) == 0
    kept = {path.name: path.read_bytes() for path in (output / "cells").iterdir()}
    assert len(kept) == 1
    (own / "val" / "n003" / "2.JPEG").write_bytes(b"no image")
    capsys.readouterr()
    assert ptq.main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "n003/2.JPEG cannot be read" in lines[0]
    assert {path.name: path.read_bytes() for path in (output / "cells").iterdir()} == kept


@pytest.mark.parametrize("program", ["ptq", "qat"])
@pytest.mark.parametrize(
    ("removed", "more", "message"),
    [
        ("val", [], "there is no folder"),
        ("val/*", [], "has no class folders"),
        ("train/n002", [], "3 class folders, but the network has 4 outputs"),
        ("val/n002/*", [], "without images: n002"),
        ("*.pth", [], "there is no checkpoint"),
        ("", ["--classes", "3"], "4 class folders, but the network has 3 outputs"),
        ("", ["--calibration", "99"], "too few images"),
        ("", ["--labels", "labels.txt"], "labels.txt cannot be read"),
        ("", ["--class-names", "names.txt"], "names.txt cannot be read"),
        ("", ["--target", "no_chip"], "no_chip"),
        ("", ["--network", NETWORK], "2 --network, but 1 --checkpoint"),
        ("", ["--device", "nonsense"], "the device 'nonsense' cannot be used"),
        ("", ["--weights", "V9"], "has no weights 'V9'"),
        ("", ["--network-options", '{"width": 1}'], "cannot be built"),
    ],
)
def test_bad_input_ends_with_one_line(
    program: str,
    removed: str,
    more: Sequence[str],
    message: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "images"
    shutil.copytree(root, own)
    for path in own.glob(removed) if removed else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert MAIN[program](options(own, tmp_path / "out", *more)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and lines[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg 0\n1.jpg 0\nnone.jpg 1", "names images that are not in"),
        ("0.jpg 0", "has no label for 1.jpg"),
        ("0.jpg\n", "a line has no label"),
        ("0.jpg 9\n", "unknown label '9'"),
        ("0.jpg n7\n", "unknown label 'n7'"),
        ("0.jpg 1\n0.jpg 2", "two labels"),
    ],
)
def test_labels_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "val"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").touch()
    labels = tmp_path / "labels.txt"
    labels.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_part(folder, 4, classes=CLASSES, labels=labels)


def test_an_error_of_the_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise PermissionError(13, "Permission denied", "val")

    assert exit_status(run) == 2
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: 'val'\n"


def test_a_damaged_cell_says_what_to_remove(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a", {"top1": 0.5})
    assert Store(tmp_path).find("a") == {"top1": 0.5}
    assert Store(tmp_path, fresh=True).find("a") is None
    store.path("a").write_text("{", encoding="utf-8")
    with pytest.raises(qcompiler.errors.ArtifactError, match="Remove it"):
        store.find("a")


def test_the_page_names_calls_that_the_programs_accept() -> None:
    page = (ROOT / "examples" / "imagenet" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith(("python ", "torchrun "))]
    assert len(commands) > 3
    for words in commands:
        place = next(index for index, word in enumerate(words) if word.startswith("examples.imagenet."))
        assert words[place].removeprefix("examples.imagenet.") in MAIN
        module = ptq if words[place].endswith("ptq") else qat
        found = module._options(words[place + 1 :])
        assert len(found.network) == len(found.checkpoint)
