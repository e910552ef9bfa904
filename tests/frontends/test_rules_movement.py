"""Functions of torch that move elements become operators that move them to the same places."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qcompiler.errors import CaptureError, QCompilerError
from qcompiler.frontends import capture, rules_movement
from tests.support.spellings import RuleTests, Spelling, image, model_of

SPELLED: dict[str, Spelling] = {
    "zeros": lambda x: torch.zeros(4, x.shape[0]).T + x.mean((2, 3)),
    "reshape": lambda x: x.reshape(-1, 2, 32),
    "view": lambda x: x.view(x.shape[0], 8, 8),
    "unsafe_view": lambda x: torch.ops.aten._unsafe_view.default(x, [-1, 16, 4]),
    "flatten": lambda x: torch.flatten(x, -2),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "view_as": lambda x: x.flatten(1).view_as(x),
    "reshape_as": lambda x: x.flatten(1).reshape_as(x),
    "ravel": lambda x: x.ravel(),
    "permute": lambda x: x.permute(0, 3, -2, 1),
    "transpose": lambda x: x.transpose(-1, 1),
    "t": lambda x: x.flatten(1).t(),
    "T": lambda x: x.flatten(1).T,
    "numpy_T": lambda x: torch.ops.aten.numpy_T.default(x.flatten(1)),
    "mT": lambda x: x.mT,
    "movedim": lambda x: x.movedim((1, -1), (-2, 1)),
    "cat": lambda x: torch.cat([x, x[:, 1:3]], -3),
    "hstack": lambda x: torch.hstack([x, x]),
    "stack": lambda x: torch.stack([x, x.neg()], -1),
    "chunk": lambda x: x.chunk(3, 2),
    "split": lambda x: x.split([1, 3], 1),
    "tensor_split": lambda x: x.tensor_split(3, -1),
    "unbind": lambda x: x.unbind(-1),
    "slice": lambda x: torch.ops.aten.slice.Tensor(x, 1, 0, 4, 2),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(2, -1),
    "getitem": lambda x: x[..., None, 1:, 2],
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "native_channel_shuffle": lambda x: torch.native_channel_shuffle(x, 2),
}  # fmt: skip

SAME: dict[str, list[Spelling]] = {
    "concat": [lambda x: torch.cat([x, x], 1), lambda x: torch.hstack((x, x)), lambda x: torch.concat((x, x), dim=1), lambda x: torch.cat((x, x), -3), lambda x: torch.concatenate((x, x), dim=1)],
    "stack": [lambda x: torch.stack([x, x], 1), lambda x: torch.stack((x, x), dim=-4)],
    "flatten": [nn.Flatten(), lambda x: x.flatten(1), lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], 64)],
    "moved axis": [lambda x: x.movedim(1, -1), lambda x: torch.moveaxis(x, 1, 3), lambda x: x.permute(0, 2, 3, 1), lambda x: x.movedim((2, 3), (1, 2))],
    "permute": [lambda x: x.permute(0, 1, 3, 2), lambda x: torch.permute(x, (0, 1, 3, 2)), lambda x: x.transpose(2, 3), lambda x: torch.transpose(x, -1, -2), lambda x: x.mT, lambda x: x.swapaxes(2, 3)],
    "unsqueeze": [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, 1), lambda x: x[:, None], lambda x: x.reshape(-1, 1, 4, 4, 4)],
    "chunk": [lambda x: x.chunk(2, 1), lambda x: torch.chunk(x, 2, dim=1), lambda x: x.split(2, 1), lambda x: torch.split(x, [2, 2], 1), lambda x: (x[:, :2], x[:, 2:])],
    "slice": [lambda x: x[:, 1:3], lambda x: x.narrow(1, 1, 2), lambda x: x[:, 1:-1], lambda x: x[:, 1:3, ...]],
    "select": [lambda x: x[:, 1], lambda x: x.select(1, 1), lambda x: x.unbind(1)[1], lambda x: x[:, -3]],
    "channel_shuffle": [
        nn.ChannelShuffle(2),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: x.view(x.shape[0], 2, 2, 4, 4).transpose(1, 2).reshape(x.shape[0], 4, 4, 4),
    ],
    "pixel_shuffle": [nn.PixelShuffle(2), lambda x: F.pixel_shuffle(x, 2)],
    "pixel_unshuffle": [nn.PixelUnshuffle(2), lambda x: F.pixel_unshuffle(x, 2)],
    "a whole axis": [lambda x: x, lambda x: x[:, :], lambda x: x[..., 0:4], lambda x: x.narrow(2, 0, 4)],
}  # fmt: skip

REFUSED: dict[str, tuple[Spelling, str]] = {
    "other type": (lambda x: x.view(torch.int32), "a view as another element type"),
    "batches after each other": (lambda x: torch.cat([x, x], 0), "tensors are concatenated along axis 0, the batch"),
    "samples": (lambda x: x.tensor_split(1, 0), "the batch is split"),
    "one sample": (lambda x: x[0], "one sample of the batch is selected"),
    "a flag as an index": (lambda x: x[:, True], "a tensor is indexed with a bool"),
}  # fmt: skip


class TestRules(RuleTests):
    file, spelled, same, refused = rules_movement, SPELLED, SAME, REFUSED


def test_half_of_the_batch_is_refused() -> None:
    with pytest.raises(QCompilerError, match="axis 0 of symbolic size N is sliced"):
        capture(model_of(lambda x: x[: x.shape[0] // 2]), image())


def test_samples_in_two_halves_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"the captured graph cannot run on inputs of shape \[1, 4, 4, 4\]"):
        capture(model_of(lambda x: x.chunk(2)), image())
