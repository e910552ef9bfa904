"""Train `DigitsNet` from scratch: `python -m examples.digits.train` from the root of the repository.

The number of epochs is fixed beforehand: the held-out scans are looked at once, at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from examples.digits.data import DigitsData, load_data
from examples.digits.model import WEIGHTS, DigitsNet

__all__ = ["accuracy", "main", "train"]

BATCH_SIZE = 64
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.01


def shift_by_chance(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each scan [N, 1, 8, 8] by -1, 0 or +1 pixels along both axes; what enters is blank."""
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.arange(8) + torch.randint(3, (count, 1), generator=generator)
    columns = torch.arange(8) + torch.randint(3, (count, 1), generator=generator)
    shifted = padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    return shifted.unsqueeze(1)


def train(data: DigitsData, *, seed: int = 0, epochs: int = 60, label_smoothing: float = 0.1) -> DigitsNet:
    """A network trained on `data.train_images`, in eval mode; the same bits for the same seed on the same machine."""
    torch.manual_seed(seed)  # initial weights and dropout draw from torch's global generator
    generator = torch.Generator().manual_seed(seed)
    model = DigitsNet().train()
    batches = len(data.train_images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(data.train_images), generator=generator)
        for batch in order[: batches * BATCH_SIZE].split(BATCH_SIZE):
            logits = model(shift_by_chance(data.train_images[batch], generator))
            loss = F.cross_entropy(logits, data.train_labels[batch], label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of `images` whose largest logit is at the label."""
    correct: Tensor = model(images).argmax(dim=1) == labels
    return correct.double().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the accuracy and write the weights."""
    parser = argparse.ArgumentParser(description="Train the digits example.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="safetensors file to write")
    options = parser.parse_args(arguments)

    torch.use_deterministic_algorithms(True)
    data = load_data()
    model = train(data, seed=options.seed, epochs=options.epochs, label_smoothing=options.label_smoothing)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"parameters         {parameters:>10,}")
    print(f"training accuracy  {accuracy(model, data.train_images, data.train_labels):>10.2%}")
    print(f"held-out accuracy  {accuracy(model, data.test_images, data.test_labels):>10.2%}")
    save_file(model.state_dict(), options.output)


if __name__ == "__main__":
    main()
