"""Windows become rows or channels, and images again."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from qcompiler.frontends import capture, rules_windows
from tests.support.running import outputs_of
from tests.support.spellings import RuleTests, Spelling, image, model_of

ATEN = torch.ops.aten

SPELLED: dict[str, Spelling] = {
    "unfold": lambda x: F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=(2, 1)),
    "im2col": lambda x: ATEN.im2col.default(x, [2, 2], [1, 1], [0, 0], [2, 2]),
    "fold": lambda x: F.fold(x.flatten(2).repeat(1, 1, 1)[:, :, :9], (4, 4), 2),
    "col2im": lambda x: ATEN.col2im.default(x.flatten(2)[:, :, :4], [5, 5], [2, 2], [1, 1], [0, 0], [3, 3]),
}

SAME: dict[str, list[Spelling]] = {
    "windows of an axis": [
        lambda x: x.unfold(2, 3, 1),
        lambda x: x[:, :, [0, 1, 2, 1, 2, 3]].reshape(-1, 4, 2, 3, 4).permute(0, 1, 2, 4, 3),
    ],
}

REFUSED: dict[str, tuple[Spelling, str]] = {
    "windows of the batch": (lambda x: x.unfold(0, 1, 1), "unfold along the batch"),
    "columns of one image": (lambda x: F.unfold(x[:, 0], 2), "unfold of a tensor with 3 axes"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_windows, SPELLED, SAME, REFUSED


def test_a_fold_that_overlaps_sums_the_windows() -> None:
    model = model_of(lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1))
    found = outputs_of(capture(model, image()).module.main, [image()])[0]
    counts = F.fold(F.unfold(torch.ones(1, 4, 4, 4), 3, padding=1), (4, 4), 3, padding=1)
    torch.testing.assert_close(found, image() * counts)
