"""The 1,797 scans that ship with scikit-learn, split without chance and without a download."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

__all__ = ["DigitsData", "load_data"]

# Within each class, in the order of the file: one scan in four is held out, and one in five of the rest calibrates.
HELD_OUT_STEP = 4
CALIBRATION_STEP = 5
# A pixel counts the ink of a 4x4 square of the original bitmap.
MAX_INK = 16.0


class DigitsData(NamedTuple):
    """Images are float32 [N, 1, 8, 8] in [0, 1]; labels int64 [N] in [0, 9].

    The calibration images are part of the training images; the test images are in neither.
    """

    train_images: Tensor
    train_labels: Tensor
    calibration_images: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data() -> DigitsData:
    """Split the scans so that every class has its share in each part; the same split on every machine."""
    ink, digits = load_digits(return_X_y=True)
    images = torch.from_numpy((ink / MAX_INK).astype(np.float32)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(digits.astype(np.int64))

    train, calibration, test = [], [], []
    for digit in range(10):
        indices = torch.nonzero(labels == digit).flatten()
        held_out = torch.arange(len(indices)) % HELD_OUT_STEP == HELD_OUT_STEP - 1
        kept = indices[~held_out]
        train.append(kept)
        calibration.append(kept[::CALIBRATION_STEP])
        test.append(indices[held_out])
    # In the file's order, so that a slice of any part holds all digits.
    train_indices, calibration_indices, test_indices = (
        torch.cat(part).sort().values for part in (train, calibration, test)
    )
    return DigitsData(
        train_images=images[train_indices],
        train_labels=labels[train_indices],
        calibration_images=images[calibration_indices],
        test_images=images[test_indices],
        test_labels=labels[test_indices],
    )
