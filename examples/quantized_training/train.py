"""`python -m examples.quantized_training.train`: train the digits network from scratch with low-bit gradients.

The text of docs/howto/train_in_integers.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import qcompiler
from examples.digits.data import DigitsData, load_data
from examples.digits.model import DigitsNet
from examples.digits.train import BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, accuracy, shift_by_chance
from qcompiler.training.backward_table import backward_table
from qcompiler.training.range_reports import range_plot, range_scalars, watch_ranges

__all__ = ["main", "prepare", "train"]

Log = Callable[[str, float, int], object]
"""Takes a name, a number and a step, as `SummaryWriter.add_scalar` of TensorBoard does."""


def prepare(images: Tensor, gradient_bits: int = 8, estimator: str = "in_hindsight") -> qcompiler.QATModule:
    """The network with random weights, and quantizers on weights, activations and gradients."""
    torch.manual_seed(0)
    return qcompiler.prepare_quantized_training(
        DigitsNet(),
        target="int8_dsp",
        example_inputs=(images,),
        gradient_bits=gradient_bits,
        estimator=estimator,
    )


def train(module: qcompiler.QATModule, data: DigitsData, epochs: int, log: Log) -> None:
    """AdamW on one cycle, as the float network is trained."""
    generator = torch.Generator().manual_seed(0)
    batches = len(data.train_images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(map(dict, module.parameter_groups(LEARNING_RATE, weight_decay=WEIGHT_DECAY)))
    rates = [LEARNING_RATE] * len(optimizer.param_groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * batches)
    for _ in range(epochs):
        module.train()
        order = torch.randperm(len(data.train_images), generator=generator)
        for batch in order[: batches * BATCH_SIZE].split(BATCH_SIZE):
            logits = module(shift_by_chance(data.train_images[batch], generator))
            loss = F.cross_entropy(logits, data.train_labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            module.step()
            log("loss", loss.item(), int(module.steps))
        for name, value in range_scalars(module).items():
            log(name, value, int(module.steps))


def _log_to(folder: Path | None) -> Log:
    if folder is None:
        return lambda name, value, step: None
    from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

    log: Log = SummaryWriter(str(folder)).add_scalar
    return log


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compile, and print the accuracy of the integer program."""
    parser = argparse.ArgumentParser(description="Train the digits network with low-bit gradients.")
    parser.add_argument(
        "--gradient-bits", type=int, default=8, help="bits of gradients; weights and activations have 8"
    )
    parser.add_argument("--estimator", default="in_hindsight", help="estimator of ranges")
    parser.add_argument("--epochs", type=int, default=60, help="number of passes over the data")
    parser.add_argument("--log", type=Path, help="folder for TensorBoard")
    parser.add_argument(
        "--output", type=Path, default=Path("out") / "quantized_training", help="folder of the artifact"
    )
    options = parser.parse_args(arguments)

    data = load_data()
    module = prepare(data.train_images[:BATCH_SIZE], options.gradient_bits, options.estimator)
    print(backward_table(module))
    watch_ranges(module)
    train(module, data, options.epochs, _log_to(options.log))
    print(f"module in eval mode  {accuracy(module.eval(), data.test_images, data.test_labels):>8.2%}")
    compiled = qcompiler.compile(module, output=options.output)
    print(f"integer program      {accuracy(compiled.module().eval(), data.test_images, data.test_labels):>8.2%}")
    plot = options.output.with_name(f"{options.output.name}-ranges.svg")
    plot.write_text(range_plot(module), encoding="utf-8")
    print(f"{options.output}: verified; {plot.name}: clipped gradients by layer")


if __name__ == "__main__":
    main()
