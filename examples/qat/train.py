"""`python -m examples.qat.train --bits 3`: train the benchmark MobileNet with few bits, to an artifact.

The text of docs/howto/train_with_quantization.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

import qcompiler
from benchmarks.networks import load
from benchmarks.rendered import Scenes, split
from benchmarks.train import SMOOTHING, turned
from qcompiler.training.freezing import Freezing
from qcompiler.training.schedules import Cosine
from qcompiler.training.tracking import oscillation_plot, oscillation_scalars

__all__ = ["accuracy", "batches", "main", "prepare", "train"]

BATCH = 64
Log = Callable[[str, float, int], object]
"""Takes a name, a number and a step, as `SummaryWriter.add_scalar` of TensorBoard does."""


def prepare(bits: int, calibration: list[Tensor], steps: int) -> qcompiler.QATModule:
    """The trained network, with quantizers in it."""
    target = qcompiler.load_target("int8_dsp").override(weight_bits=bits, per_channel=True)
    return qcompiler.prepare_qat(
        load("mobilenet"),
        target,
        calibration_data=calibration,
        batch_norm="keep",
        freezing=Freezing(Cosine(0.04, 0.005, before=0.0)),
        total_steps=steps,
    )


def batches(scenes: Scenes, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of an epoch, in an order of its own, each batch turned or mirrored."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(scenes.labels), generator=generator)
    for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
        yield turned(scenes.images[chosen], scenes.labels[chosen], generator)


def train(module: qcompiler.QATModule, scenes: Scenes, epochs: int, log: Log) -> None:
    """SGD for weights and batch norms, Adam for scales, both down to 0 along a cosine."""
    steps = epochs * (len(scenes.labels) // BATCH)
    groups = [dict(group) for group in module.parameter_groups(lr=0.05, scale_lr=1e-3)]
    scales = [group for group in groups if group["name"] == "scales"]
    others = [group for group in groups if group["name"] != "scales"]
    optimizers = [torch.optim.SGD(others, momentum=0.9), torch.optim.Adam(scales)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(item, steps) for item in optimizers]
    module.before_evaluation(lambda: qcompiler.reestimate_batch_norm(module, batches(scenes, seed=0)))
    for epoch in range(epochs):
        module.train()
        for images, labels in track(list(batches(scenes, seed=epoch)), f"epoch {epoch + 1} of {epochs}"):
            loss = F.cross_entropy(module(images), labels, label_smoothing=SMOOTHING) + module.regularization()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            module.step()
            log("loss", loss.item(), int(module.steps))
        for name, value in oscillation_scalars(module).items():
            log(name, value, int(module.steps))


def accuracy(model: Callable[[Tensor], object], scenes: Scenes) -> float:
    """Share of right answers."""
    right = 0
    for images, labels in zip(scenes.images.split(BATCH), scenes.labels.split(BATCH), strict=True):
        logits = model(images)
        assert isinstance(logits, Tensor)
        right += int((logits.argmax(1) == labels).sum())
    return right / len(scenes.labels)


def _log_to(folder: Path | None) -> Log:
    if folder is None:
        return lambda name, value, step: None
    from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

    log: Log = SummaryWriter(str(folder)).add_scalar
    return log


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compile, and say how good it is."""
    parser = argparse.ArgumentParser(description="Train the benchmark MobileNet with few bits.")
    parser.add_argument("--bits", type=int, choices=[2, 3, 4], default=4, help="of weights; activations have 8")
    parser.add_argument("--epochs", type=int, default=8, help="half a minute each")
    parser.add_argument("--scenes", type=int, help="to train on, only the first ones")
    parser.add_argument("--images", type=int, help="to test with, only the first ones")
    parser.add_argument("--log", type=Path, help="folder for TensorBoard")
    parser.add_argument("--output", type=Path, default=Path("out") / "qat", help="folder of the artifact")
    options = parser.parse_args(arguments)

    scenes = Scenes(*(part[: options.scenes] for part in split("train")))
    test = Scenes(*(part[: options.images] for part in split("validation")))
    calibration = list(split("calibration").images[:512].split(BATCH))
    module = prepare(options.bits, calibration, options.epochs * (len(scenes.labels) // BATCH))
    print(f"quantized, before training  {accuracy(module.eval(), test):>8.2%}")
    train(module, scenes, options.epochs, _log_to(options.log))
    print(f"after training              {accuracy(module.eval(), test):>8.2%}")
    compiled = qcompiler.compile(module, output=options.output)
    print(f"integer program             {accuracy(compiled.run, test):>8.2%}")
    plot = options.output.with_name(f"{options.output.name}-oscillations.svg")
    plot.write_text(oscillation_plot(module), encoding="utf-8")
    print(f"{options.output}: verified; {plot.name}: which layers oscillate")


if __name__ == "__main__":
    main()
