"""Divergence of the outputs of a classifier: how far its probabilities are from those of the float model.

    mean over samples of  sum over classes of  p log(p / q)        p = softmax(float outputs), q = softmax(outputs)

A signal-to-noise ratio weighs all outputs alike; the divergence weighs the classes that the model considers. It means
something for outputs that are logits of classes. Natural logarithm: the unit is nats per sample.

Source: Kullback and Leibler 1951, On Information and Sufficiency, Annals of Mathematical Statistics 22(1), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["is_classifier", "summed_divergence"]

MOST_CLASSES = 100_000
"""Outputs with more columns are no classes, but features."""


def is_classifier(outputs: Sequence[Tensor]) -> bool:
    """Whether outputs can be logits of classes: one float tensor [samples, classes] with at least two classes."""
    if len(outputs) != 1 or not outputs[0].is_floating_point() or outputs[0].dim() != 2:
        return False
    return 2 <= outputs[0].shape[1] <= MOST_CLASSES


def summed_divergence(wanted: Tensor, found: Tensor) -> float:
    """The divergence of all samples together, nats; samples with numbers that are not finite do not count.

    Args:
        wanted: Outputs of the float model, [samples, classes].
        found: Outputs of the other model, of the same shape.
    """
    finite = torch.isfinite(wanted).all(1) & torch.isfinite(found).all(1)
    exact, other = (torch.log_softmax(x[finite].double(), 1) for x in (wanted, found))
    return max(float((exact.exp() * (exact - other)).sum()), 0.0)
