"""`python -m benchmarks.train [names]`: train the networks of the accuracy benchmarks and write their weights.

Epochs and learning rates stand in the tables below and were chosen on the validation split. The test split is not
looked at.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import NETWORKS, weights_of
from benchmarks.rendered import FAMILIES, Scenes, split

__all__ = ["accuracy", "is_segmenter", "main", "score", "train", "turned"]

BATCH_SIZE = 128
EVALUATION_BATCH = 500
WEIGHT_DECAY = 0.02
SMOOTHING = 0.05
WARMUP = 0.15
"""Share of the steps during which the learning rate rises."""
EPOCHS = {"mobilenet": 14, "mobilenet_relu": 14, "resnet": 20, "efficientnet": 14, "mobilenet_v3": 14, "unet": 8}
LEARNING_RATE = {
    "mobilenet": 0.01,
    "mobilenet_relu": 0.01,
    "resnet": 0.006,
    "efficientnet": 0.008,
    "mobilenet_v3": 0.008,
    "unet": 0.006,
}


def is_segmenter(name: str) -> bool:
    """Whether a network says of each pixel what it is."""
    return name == "unet"


def train(name: str, scenes: Scenes, *, seed: int = 0, epochs: int | None = None) -> nn.Module:
    """A network trained on `scenes`, in eval mode; the same bits for the same seed on the same machine."""
    torch.manual_seed(seed)  # the initial weights draw from torch's global generator
    generator = torch.Generator().manual_seed(seed)
    model = NETWORKS[name]().train()
    targets = scenes.masks if is_segmenter(name) else scenes.labels
    batches, epochs = len(targets) // BATCH_SIZE, epochs or EPOCHS[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE[name], weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE[name], total_steps=epochs * batches, pct_start=WARMUP
    )
    for epoch in range(epochs):
        begun, total = time.perf_counter(), 0.0
        order = torch.randperm(len(targets), generator=generator)
        for batch in order[: batches * BATCH_SIZE].split(BATCH_SIZE):
            images, wanted = turned(scenes.images[batch], targets[batch], generator)
            loss = F.cross_entropy(model(images), wanted, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"{name} epoch {epoch + 1:>2} loss {total / batches:.4f} {time.perf_counter() - begun:.1f} s", flush=True)
    return model.eval()


def turned(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch by one of the eight symmetries of the square, one for all: shapes stand at any angle anyway."""
    turns, mirrored = torch.randint(4, (2,), generator=generator).tolist()
    axes = [-1] if mirrored % 2 else []
    images = images.rot90(turns, (-2, -1)).flip(axes)
    return images, targets.rot90(turns, (-2, -1)).flip(axes) if targets.dim() > 1 else targets


def score(name: str, logits: Tensor, scenes: Scenes) -> float:
    """Accuracy, in 0..1: of classifiers the share of right answers, of segmenters the mean intersection over union."""
    found = logits.argmax(1)
    if not is_segmenter(name):
        return (found == scenes.labels).double().mean().item()
    counts = torch.bincount((scenes.masks * FAMILIES + found).flatten(), minlength=FAMILIES**2)
    confusion = counts.reshape(FAMILIES, FAMILIES).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return (confusion.diag() / union).mean().item()


@torch.no_grad()
def accuracy(name: str, model: nn.Module, scenes: Scenes) -> float:
    """Accuracy of a float network."""
    logits = torch.cat([model(part) for part in scenes.images.split(EVALUATION_BATCH)])
    return score(name, logits, scenes)


def main() -> int:
    """Train and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; all when none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="fewer, for a look at the validation split: writes nothing")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums of other threads come in another order
    scenes, validation = split("train"), split("validation")
    for name in options.names or NETWORKS:
        begun = time.perf_counter()
        model = train(name, scenes, seed=options.seed, epochs=options.epochs)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {parameters:,} parameters, {time.perf_counter() - begun:.0f} s")
        print(f"{name}: validation {accuracy(name, model, validation):.2%}", flush=True)
        if options.epochs is None:
            path = weights_of(name)
            path.parent.mkdir(exist_ok=True)
            save_file(model.state_dict(), path)
            print(f"{name}: written to {path.name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
