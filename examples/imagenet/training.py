"""A training with quantization that can be interrupted: the same call continues with the same numbers.

The state is one safetensors file: the module, the optimizers, and the number of steps. Data order, augmentation,
dropout and rates follow from the seed and the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import qcompiler
from examples.imagenet.data import Part, Preprocessing, batches, shuffled
from examples.imagenet.options import is_first, tell
from examples.imagenet.qat_tables import MOMENTUM, SCALE_RATE, Training
from examples.imagenet.results import write
from qcompiler.errors import ArtifactError, InputError

__all__ = ["Feed", "Group", "Learner", "Limit", "OutOfTimeError"]

REPORT = 100
"""Steps between two lines of progress."""


class OutOfTimeError(Exception):
    """The time of this call is over; the state is saved."""


@dataclass(frozen=True)
class Group:
    """The processes of a launcher such as torchrun.

    Args:
        rank: Number of this process.
        count: Number of processes.
        device: Device of this process.
    """

    rank: int
    count: int
    device: torch.device

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found

    def share(self, part: Part) -> Part:
        """The images of this process."""
        return part.chosen(range(self.rank, len(part), self.count))


@dataclass(frozen=True)
class Feed:
    """Training batches.

    Args:
        part: Training images.
        preprocessing: The way to the network.
        batch: Images of a step, over all processes.
        workers: Processes that read images.
        seed: Seed of order and augmentation.
        group: Processes, which share each batch.

    Raises:
        InputError: A batch cannot be shared, or is larger than the data.
    """

    part: Part
    preprocessing: Preprocessing
    batch: int
    workers: int
    seed: int
    group: Group

    def __post_init__(self) -> None:
        if self.batch % self.group.count:
            found = f"--batch {self.batch} cannot be shared by {self.group.count} processes"
            raise InputError(found, expected=f"a multiple of {self.group.count}")
        if self.batch > len(self.part):
            raise InputError(f"--batch {self.batch} is more than the {len(self.part):,} training images")

    @property
    def steps(self) -> int:
        """Steps per epoch; images that fill no batch are left out."""
        return len(self.part) // self.batch

    def epoch(self, number: int, begin: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the batches of an epoch, from step `begin` on."""
        seed = _mixed(self.seed, number)
        order = shuffled(len(self.part), seed)[begin * self.batch : self.steps * self.batch]
        mine = order[self.group.rank :: self.group.count]
        seeds = [_mixed(seed, index) for index in mine]
        size = self.batch // self.group.count
        part = self.part.chosen(mine)
        return batches(part, self.preprocessing, size, workers=self.workers, seeds=seeds)


@dataclass
class Limit:
    """Time that a call takes at most.

    Args:
        minutes: Minutes; None: no limit.
    """

    minutes: float | None
    begun: float = field(default_factory=time.monotonic)

    def is_over(self, group: Group) -> bool:
        """Whether the time is over, the same in all processes."""
        if self.minutes is None:
            return False
        return bool(group.total(float(group.rank == 0 and time.monotonic() - self.begun > 60.0 * self.minutes))[0])


class Learner:
    """A module in training.

    Args:
        module: Module of `prepare_qat` on the device of the group.
        training: Settings.
        feed: Training batches.
        path: File of the state.
        key: Key of the training, so that no state of another one is continued.
        fresh: Whether a saved state counts for nothing.

    Attributes:
        losses: Mean loss of the task of each finished epoch, nats.
        start: Accuracy before training, which the state keeps; None: not measured yet.
        restored: Whether the training continues from a saved state.
    """

    def __init__(
        self,
        module: qcompiler.QATModule,
        training: Training,
        feed: Feed,
        path: Path,
        key: str,
        *,
        fresh: bool = False,
    ) -> None:
        self.module, self.training, self.feed, self.path, self.key = module, training, feed, path, key
        self.losses: list[float] = []
        self.start: float | None = None
        self._sum = 0.0
        self.optimizers = _optimizers(module, training)
        self._rates = [[group["lr"] for group in item.param_groups] for item in self.optimizers]
        self.restored = not fresh and self._restore()

    @property
    def steps(self) -> int:
        """Finished steps."""
        return int(self.module.steps)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.training.epochs * self.feed.steps

    def learn(self, limit: Limit, every: int) -> None:
        """Train to the end.

        Args:
            limit: Time of this call.
            every: Steps between two savings of the state, which the end of each epoch saves too.

        Raises:
            OutOfTimeError: The time is over.
        """
        module, device = self.module.train(), self.feed.group.device
        parallel: nn.Module = module
        if self.feed.group.count > 1:
            parallel = DistributedDataParallel(module, device_ids=None if device.type == "cpu" else [device])
        while self.steps < self.total:
            epoch, begin = divmod(self.steps, self.feed.steps)
            for images, labels in self.feed.epoch(epoch, begin):
                self._step(parallel, images.to(device), labels.to(device))
                if self.steps % self.feed.steps == 0:
                    self.losses.append(round(self.feed.group.total(self._sum)[0] / self._count, 5))
                    self._sum = 0.0
                    tell(f"  epoch {epoch + 1} of {self.training.epochs}: loss {self.losses[-1]:.4f}")
                elif self.steps % every:
                    if self.steps % REPORT == 0:
                        tell(f"  step {self.steps:,} of {self.total:,}")
                    if not limit.is_over(self.feed.group):
                        continue
                self._save()
                if self.steps < self.total and limit.is_over(self.feed.group):
                    raise OutOfTimeError

    @property
    def _count(self) -> int:
        return self.feed.steps * self.feed.group.count

    def _step(self, parallel: nn.Module, images: Tensor, labels: Tensor) -> None:
        # Dropout draws from torch's generator; seeded by the step, a continued run draws the same.
        torch.manual_seed(_mixed(_mixed(self.feed.seed, self.steps), self.feed.group.rank))
        share = 0.5 * (1.0 + math.cos(math.pi * self.steps / self.total))
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            optimizer.zero_grad()
        loss = F.cross_entropy(parallel(images), labels)
        self._sum += loss.item()
        if self.training.way.regularizers:
            loss = loss + self.module.regularization()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.module.step()

    def _save(self) -> None:
        (total,) = self.feed.group.total(self._sum)
        if not is_first():
            return
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                found = {name: value for name, value in values.items() if isinstance(value, Tensor)}
                tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in found.items()}
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        # One entry, because safetensors writes several in any order.
        about = {"training": json.dumps([self.key, self.start, self.losses, total])}
        write(self.path, save(plain, about))

    def _restore(self) -> bool:
        """Continue from the saved state, if there is one."""
        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
            key, self.start, self.losses, total = json.loads(about["training"])
            if key != self.key:
                raise KeyError("it belongs to another training")
            # Each process adds its own losses from here on; the first one holds the sum so far.
            self._sum = total if is_first() else 0.0
            module = {name.removeprefix("module."): x for name, x in tensors.items() if name.startswith("module.")}
            self.module.load_state_dict(module)
            for number, optimizer in enumerate(self.optimizers):
                optimizer.load_state_dict(_optimizer_state(optimizer, tensors, f"optimizer.{number}."))
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            fix = "Remove it to begin this training anew."
            raise ArtifactError(f"the state {self.path} cannot be continued: {reason}", fix=fix) from None
        return True


def _mixed(seed: int, number: int) -> int:
    """A seed of a part of the work, from 0 to below 2^63."""
    return (seed * 0x5851F42D4C957F2D + 2 * number + 1) % 2**63


def _optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> dict[str, object]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, _, key = name.removeprefix(prefix).partition(".")
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _optimizers(module: qcompiler.QATModule, training: Training) -> Sequence[torch.optim.Optimizer]:
    if training.optimizer == "adam":
        groups = module.parameter_groups(training.rate, weight_decay=training.weight_decay)
        return [torch.optim.Adam(map(dict, groups))]
    found = module.parameter_groups(training.rate, scale_lr=SCALE_RATE, weight_decay=training.weight_decay)
    groups_of = [dict(group) for group in found]
    scales = [group for group in groups_of if group["name"] in ("scales", "ranges")]
    others = [group for group in groups_of if group not in scales]
    return [torch.optim.SGD(others, momentum=MOMENTUM), *([torch.optim.Adam(scales)] if scales else [])]
