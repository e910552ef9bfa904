"""The source of each kind of model."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn
from torch.export import ExportedProgram

from qcompiler.errors import InputError
from qcompiler.frontends.examples import WAYS
from qcompiler.frontends.exported import Exported
from qcompiler.frontends.given import check_kind
from qcompiler.frontends.source import Source
from qcompiler.frontends.torch_module import TorchModule

__all__ = ["Subject", "find_example_inputs", "source_of"]

Subject: TypeAlias = nn.Module | ExportedProgram | Source
"""A model that can be captured."""


def source_of(model: object) -> Source:
    """The model as a source; a source is returned unchanged.

    Raises:
        InputError: The model has another type, or a parameter or buffer has no values or holds NaN or infinity.
    """
    if isinstance(model, Source):
        return model
    checked = check_kind(model)
    return Exported(checked) if isinstance(checked, ExportedProgram) else TorchModule(checked)


def find_example_inputs(model: Subject) -> object:
    """Example inputs found in the attributes of `model`.

    Searched in this order: the inputs kept in an ExportedProgram; `example_input_array` (Lightning); the input size
    in `default_cfg` or `pretrained_cfg` (timm); `input_size` or `input_shape`; `config` with `num_channels` and
    `image_size` (transformers); three channels and `image_size` or 224 for image networks whose class is in
    torchvision. Sizes have no batch axis; the values are then drawn from a separate random generator.

    Raises:
        InputError: No attribute gives inputs or a size; the error lists the ways to give inputs.
    """
    found = source_of(model).example()
    if found is None:
        raise InputError(
            "there are no example inputs, and the model has no attribute with the shape of its input",
            expected="example_inputs, or one of these attributes of the model: example_input_array, "
            "default_cfg['input_size'], pretrained_cfg['input_size'], input_size, input_shape, or config.num_channels "
            "and config.image_size; or an image network of torchvision.models",
            fix=WAYS,
        )
    return found
