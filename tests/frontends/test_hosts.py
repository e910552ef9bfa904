"""Detectors: the network in integers, and named steps that the host computes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import batched_nms, box_iou

import qcompiler
from qcompiler.errors import InputError, UnsupportedError

SIDE = 64


class Maps(nn.Module):
    """Two feature maps, [N, 3, 64, 64] -> [N, 32, 16, 16] and [N, 32, 8, 8]."""

    def __init__(self, out_channels: int | list[int] = 32) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        return {"0": first, "1": self.second(first)}


def one_stage(name: str) -> Any:
    """A small detector of torchvision with random weights, for images of 64x64 pixels."""
    torch.manual_seed(0)
    if name == "SSD":
        boxes = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.4, 0.6])
        return detection.ssd.SSD(Maps([32, 32]), boxes, (SIDE, SIDE), 4, score_thresh=0.2).eval()
    shapes = ((0.5, 1.0, 2.0),) if name == "RetinaNet" else ((1.0,),)
    boxes = AnchorGenerator(((8,), (16,)), shapes * 2)
    kind: Any = {"RetinaNet": detection.RetinaNet, "FCOS": detection.FCOS}[name]
    model = kind(Maps(), 4, anchor_generator=boxes, min_size=SIDE, max_size=SIDE, score_thresh=0.005)
    for head in model.head.children():  # scores of a new network are nearly equal
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.08)
    return model.eval()


def images(count: int = 4, seed: int = 0, side: int = SIDE) -> list[Tensor]:
    """Bright rectangles on a dark noisy ground, [3, side, side] in 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        image = 0.1 * torch.rand(3, side, side, generator=generator)
        for _ in range(2):
            x, y, w, h = (int(n) for n in torch.randint(8, 28, (4,), generator=generator))
            image[:, y : y + h, x : x + w] += torch.rand(3, 1, 1, generator=generator)
        found.append(image.clamp(max=1.0))
    return found


class Fixed(nn.Module):
    """A head whose results are given."""

    def __init__(self, results: dict[str, Tensor]) -> None:
        super().__init__()
        self.results = results

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return self.results


@pytest.mark.parametrize("name", ["SSD", "RetinaNet", "FCOS"])
def test_boxes_are_those_of_torchvision_for_the_outputs_of_the_integer_network(name: str, tmp_path: Path) -> None:
    model, pictures = one_stage(name), images()
    split = qcompiler.split_host(model, pictures)
    compiled = qcompiler.compile(split.network, "int8_dsp_per_channel", calibration_data=split.batches([pictures]))
    assert compiled.verification is not None and compiled.verification.passed
    assert not compiled.artifact.islands
    assert compiled.verification.form("C").status == "equal"
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    found: Any = split.run(compiled, pictures)
    read: Any = split.run(loaded, pictures)
    heads: Any = compiled.run(split.before(pictures)[0])
    oracle = copy.deepcopy(model)
    oracle.head = Fixed(heads)
    with torch.no_grad():
        wanted = oracle(pictures)
        in_float = model.head([*model.backbone(split.before(pictures)[0]).values()])
    assert [*heads] == [*in_float] and not any(torch.equal(heads[key], in_float[key]) for key in heads)
    assert sum(len(item["scores"]) for item in wanted) > 10
    for ours, again, theirs in zip(found, read, wanted, strict=True):
        assert [*ours] == [*theirs]
        assert all(torch.equal(ours[key], theirs[key]) and torch.equal(again[key], theirs[key]) for key in ours)


def test_an_artifact_names_the_steps_of_the_host_and_their_code(tmp_path: Path) -> None:
    split = qcompiler.split_host(one_stage("SSD"), images())
    calibration_data = [split.before(images())[0]]
    compiled = qcompiler.compile(split.network, calibration_data=calibration_data, effort="fast", verify="off")
    folder = compiled.save(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text())
    (told,) = [item for item in manifest["diagnostics"] if item["code"] == "host-steps"]
    assert told["data"]["after"] == ["anchor boxes", "box decoding", "non-maximum suppression"]
    assert told["where"] == "torchvision.models.detection.ssd:SSD"
    sentence = "non-maximum suppression after the network. Your program computes these steps in float"
    assert sentence in compiled.artifact.report()
    assert sentence in qcompiler.load(folder).report()
    checked = qcompiler.check(split.network, example_inputs=calibration_data[0])
    assert sentence in str(checked)


def test_training_keeps_the_names_of_the_detector_and_the_steps_of_the_host() -> None:
    model, pictures = one_stage("SSD"), images()
    split = qcompiler.split_host(model, pictures)
    x, _ = split.before(pictures)
    learned = qcompiler.prepare_qat(split.network, calibration_data=[x])
    weights = {name for name, _ in model.named_parameters()}
    assert len({name for name, _ in learned.named_parameters()} & weights) > 4
    outputs: Any = learned.train()(x)
    outputs["cls_logits"].square().mean().backward()
    compiled = qcompiler.compile(learned.eval(), verify="off")
    assert "host-steps" in {item.code for item in compiled.diagnostics}
    assert [*split.run(compiled, pictures)[0]] == ["boxes", "scores", "labels"]  # type: ignore[index]


def test_images_of_another_size_are_brought_to_that_of_the_network_or_refused() -> None:
    split = qcompiler.split_host(one_stage("SSD"), images())
    found: Any = split(images(1, side=96))
    assert float(found[0]["boxes"].max()) > 64.0, "boxes are those of the image that was given"
    with pytest.raises(InputError, match=r"images of 64x\d+ pixels.*expected 64x64.*fixed_size = \(64, 64\)"):
        qcompiler.split_host(one_stage("FCOS"), images())([torch.rand(3, 200, 64)])


def doubled() -> nn.Module:
    class Doubled(detection.ssd.SSD):  # type: ignore[misc]
        def forward(self, images: Any, targets: Any = None) -> Any:
            return super().forward([2.0 * image for image in images], targets)

    model = one_stage("SSD")
    model.__class__ = Doubled
    return model  # type: ignore[no-any-return]


def test_what_has_no_host_part_is_refused() -> None:
    with pytest.raises(InputError, match="nothing is known of the host part of Maps"):
        qcompiler.split_host(Maps().eval(), torch.rand(1, 3, 64, 64))
    with pytest.raises(InputError, match="no names"):
        qcompiler.split_host(Maps().eval(), torch.rand(1, 3, 64, 64), after=lambda y, _: y)
    with pytest.raises(InputError, match="training mode"):
        qcompiler.split_host(one_stage("SSD").train(), images())
    with pytest.raises(InputError, match="Doubled does not compute the same as SSD of torchvision"):
        qcompiler.split_host(doubled(), images())
    two = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    with pytest.raises(UnsupportedError, match="FasterRCNN has two stages"):
        qcompiler.split_host(two, images())


class Yolo(nn.Module):
    """Backbone and three heads of one anchor each, [N, 3, 64, 64] -> [N, 5, 8, 8], [N, 5, 4, 4], [N, 5, 2, 2]."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 16, 2), (16, 24, 2), (24, 32, 2), (32, 32, 2), (32, 32, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.SiLU()) for i, o, s in sizes
        )
        self.heads = nn.ModuleList(nn.Conv2d(32, 5, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [head(item) for head, item in zip(self.heads, found[2:], strict=True)]


ANCHORS = (12.0, 20.0, 32.0)


def decode(outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes [N, B, 4] by grid and anchor, and scores [N, B]."""
    boxes, scores = [], []
    for raw, anchor in zip(outputs, ANCHORS, strict=True):
        side = raw.shape[-1]
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"))
        middle = (torch.sigmoid(raw[:, :2]) * 2 - 0.5 + grid) * (SIDE / side)
        half = torch.exp(raw[:, 2:4].clamp(-3, 3)) * anchor / 2
        boxes.append(torch.cat([middle - half, middle + half], 1).flatten(2).transpose(1, 2))
        scores.append(torch.sigmoid(raw[:, 4]).flatten(1))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def after(outputs: list[Tensor], context: object) -> list[dict[str, Tensor]]:
    found = []
    for boxes, scores in zip(*decode(outputs), strict=True):
        kept = scores > 0.3
        boxes, scores = boxes[kept], scores[kept]
        best = batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.long), 0.5)
        found.append({"boxes": boxes[best], "scores": scores[best], "labels": torch.ones(len(best), dtype=torch.long)})
    return found


def squares(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with one bright square each, [N, 3, 64, 64], and its corners [N, 4]."""
    side = torch.randint(10, 30, (count,), generator=generator)
    x, y = (8 + (torch.rand(count, generator=generator) * (48 - side).clamp(min=1)).long() for _ in range(2))
    boxes = torch.stack([x, y, x + side, y + side], 1).float()
    pictures = 0.2 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    for picture, (x0, y0, x1, y1) in zip(pictures, boxes.long().tolist(), strict=True):
        picture[:, y0:y1, x0:x1] = 0.8 + 0.2 * torch.rand(3, 1, 1, generator=generator)
    return pictures, boxes


def responsible(boxes: Tensor) -> Tensor:
    """The place among all boxes of the cell that holds the middle, in the head whose anchor is nearest, [N]."""
    sides = torch.tensor([8, 4, 2])
    head = ((boxes[:, 2] - boxes[:, 0])[:, None] - torch.tensor(ANCHORS)).abs().argmin(1)
    cell = ((boxes[:, :2] + boxes[:, 2:]) / 2 * sides[head, None] / SIDE).long()
    return torch.tensor([0, 64, 80])[head] + cell[:, 1] * sides[head] + cell[:, 0]


def trained(steps: int) -> nn.Module:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Yolo()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(steps):
        pictures, wanted = squares(32, generator)
        boxes, scores = decode(model(pictures))
        rows, best = torch.arange(len(wanted)), responsible(wanted)
        target = torch.zeros_like(scores).index_put((rows, best), torch.ones(len(best)))
        loss = nn.functional.l1_loss(boxes[rows, best], wanted) / 4
        loss = loss + nn.functional.binary_cross_entropy(scores, target, reduction="none").sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def share_found(wanted: list[dict[str, Tensor]], found: list[dict[str, Tensor]], overlap: float) -> tuple[float, int]:
    """Share of the wanted boxes that a found one overlaps, and their number."""
    hits = [
        bool(len(ours["boxes"]) and float(box_iou(box[None], ours["boxes"]).max()) >= overlap)
        for theirs, ours in zip(wanted, found, strict=True)
        for box in theirs["boxes"]
    ]
    return sum(hits) / max(1, len(hits)), len(hits)


def test_a_network_with_three_heads_finds_the_boxes_of_its_float_model() -> None:
    model = trained(150)
    generator = torch.Generator().manual_seed(9)
    pictures, _ = squares(64, generator)
    split = qcompiler.split_host(
        model, pictures, after=after, steps_after=("grid and anchors", "box decoding", "non-maximum suppression")
    )
    compiled = qcompiler.compile(split.network, "int8_dsp_per_channel", calibration_data=split.batches([pictures[:32]]))
    assert compiled.verification is not None and compiled.verification.passed
    assert {"stages.0.0", "heads.2"} <= {node.location.path for node in compiled.integer.main.nodes}
    wanted: Any = split(pictures)
    found: Any = split.run(compiled, pictures)
    share, count = share_found(wanted, found, 0.9)
    assert count > 40, "the float model finds the squares"
    assert share > 0.9
    blurred = [{"boxes": item["boxes"] + 3.0} for item in wanted]
    assert share_found(wanted, blurred, 0.9)[0] < 0.1, "the measure sees a shift of 3 pixels"
