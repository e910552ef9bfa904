"""Model sources: conversion of the user's model to a graph with samples and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from qcompiler.calibration.spool import reiterable
from qcompiler.errors import InputError, NotSupportedYetError
from qcompiler.frontends import Subject, capture, source_of
from qcompiler.frontends.finite import check_finite
from qcompiler.frontends.given import parse_device
from qcompiler.frontends.onnx.source import OnnxModel
from qcompiler.frontends.pt2 import load_exported
from qcompiler.frontends.source import Source
from qcompiler.frontends.wrappers import unwrap
from qcompiler.ir import tree
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph
from qcompiler.passes import PassContext
from qcompiler.session.batches import Batches, WithFloats, with_floats
from qcompiler.session.options import Options
from qcompiler.session.pipeline import LEARNED_FACTS
from qcompiler.session.stages import Captured
from qcompiler.storage.tensors import row_major
from qcompiler.training.module import QATModule

if TYPE_CHECKING:
    from onnx import ModelProto

Model: TypeAlias = "Subject | str | Path | bytes | ModelProto"
"""A module, an exported program, a source, the path of a file, or an ONNX model."""
TENSORFLOW = (".keras", ".h5", ".pb", ".tflite")
"""Suffixes of files of TensorFlow."""

SAMPLES = 4
"""Samples on which the contracts of passes are validated and the forms are compared."""
TRIAL_SAMPLES, TRIAL_NUMBERS = 32, 2**18
"""Largest number of samples on which forms are run as users run them, and of the numbers of an input of them."""


TRAINING = "quantization-aware-training"
"""Name of the training among the records of passes."""


def quantized_module(model: object) -> QATModule | None:
    """The quantized module in `model`, also inside DistributedDataParallel or torch.compile; None if absent."""
    for name in ("_orig_mod", "module", "_orig_mod"):
        if isinstance(model, QATModule):
            break
        if isinstance(model, nn.Module) and isinstance(getattr(model, name, None), nn.Module):
            model = getattr(model, name)
    return model if isinstance(model, QATModule) else None


def prepared(model: object) -> QATModule | None:
    """The module of `prepare_qat` in `model`, as `quantized_module` finds it; None if absent."""
    found = quantized_module(model)
    return None if found is None or found.preparation is None else found


def captured_training(module: QATModule, context: PassContext) -> Captured:
    """The quantized graph of a prepared module with its current tensors; its samples are put into `context`.

    Raises:
        UnsupportedError: The target is for simulation only.
        CalibrationError: A scale is 0 or not finite.
    """
    way = module.preparation
    assert way is not None
    learned = module.quantized()
    learned = learned.clone({name: row_major(tensor.cpu()) for name, tensor in learned.tensors.items()})
    context.samples = [list(way.samples)]
    done = Record(TRAINING, metrics={"steps": int(module.steps), "batch_norm": module.recipe.batch_norm})
    records, pipeline = (*way.records, done), f"{way.pipeline}, {TRAINING}"
    return Captured(learned, way.diagnostics, LEARNED_FACTS, records, pipeline, way.name)


def check_forward(model: Subject, options: Options) -> None:
    """Refuse `forward=` where it would not be used.

    Raises:
        InputError: There is no calibration data, or no module to call.
    """
    if options.forward is not None and (options.calibration_data is None or not isinstance(model, nn.Module)):
        raise InputError("forward= needs calibration_data and a module to call", fix="Omit forward=.")


def capture_model(given: Subject, options: Options, context: PassContext) -> Captured:
    """Capture a model, and put its calibration data and samples into `context`.

    Raises:
        CaptureError: The model cannot be traced.
        UnsupportedError: The model calls a function that has no operator.
        InputError: The model, the example inputs or the first batch do not fit.
        CalibrationError: There is no batch.
    """
    unwrapped, notes = unwrap(given)
    source = source_of(unwrapped)
    device = None if options.device is None else parse_device(options.device)
    first, batches, example_inputs = None, None, options.example_inputs
    if options.calibration_data is not None:
        batches = Batches(source, options.calibration_data, options.forward, device)
        once = iter(options.calibration_data) is options.calibration_data
        context.calibration_data = reiterable(batches, once=once)
        first = next(iter(context.calibration_data))
        if example_inputs is None:
            example_inputs = batches.example
    found = capture(source, example_inputs, device=device)
    graph = found.module.main
    if batches is not None and first is not None:
        batches.graph = graph
        first = with_floats(first, graph)
        batches.check(first)
        if tree.bytes_of(graph.input_tree) and context.calibration_data is not None:
            context.calibration_data = WithFloats(context.calibration_data, graph)
    inputs = found.inputs if first is None else first
    context.samples = [samples_of(graph, inputs, first is None, context.seed)]
    if first is None:
        fix = "Pass calibration_data for which the model returns finite numbers."
        check_finite(graph, context.samples[0], "random inputs", fix)
    else:
        fix = "Run the model in torch on this batch and inspect this call, or omit the batch."
        check_finite(graph, context.samples[0], "the first batch of calibration_data", fix)
    trial = [] if first is None else samples_of(graph, first, False, context.seed, _trial_size(first))
    return Captured(found.module, [*notes, *found.diagnostics], name=source.name, trial=trial)


def load_model(model: Model, fixed_inputs: Mapping[str, object] | None = None) -> Subject:
    """The model itself, read from disk where a path is given.

    Args:
        model: As for `compile`.
        fixed_inputs: Values of inputs of an ONNX file, by name.

    Raises:
        InputError: The path leads to no exported program and to no ONNX file, or the file cannot be read.
        NotSupportedYetError: The path leads to a model of TensorFlow.
    """
    if isinstance(model, bytes) or _is_message(model):
        return OnnxModel(model, fixed_inputs)
    if isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        return OnnxModel(model, fixed_inputs)
    if fixed_inputs:
        raise _no_fixed_inputs(model)
    if not isinstance(model, str | Path):
        return model
    path = Path(model)
    if path.suffix in TENSORFLOW or (path / "saved_model.pb").is_file():
        raise NotSupportedYetError(
            "a model of TensorFlow", where=str(model), fix="Convert it with tf2onnx, and pass the ONNX file."
        )
    if path.suffix != ".pt2":
        raise InputError(
            f"the model is the path {str(model)!r}",
            expected="a module, an ExportedProgram, the path of a .pt2 file written by torch.export.save, or an ONNX "
            "file",
            fix="If the file holds only weights, create the module and run model.load_state_dict(torch.load(path)).",
        )
    return load_exported(path)


def with_own_quantizers(model: Subject, options: Options) -> Options:
    """The options with the quantizers of a model that has been quantized already as encodings.

    Raises:
        InputError: There are encodings besides.
    """
    found = model.encodings if isinstance(model, Source) else None
    if found is None:
        return options
    if options.encodings is not None:
        raise InputError(
            "encodings= was passed, and the model has quantizers of its own",
            expected="one of them",
            fix="Omit encodings=, or pass the float model.",
        )
    return replace(options, encodings=found)


def _no_fixed_inputs(model: object) -> InputError:
    """The error for `fixed_inputs` of a model that is not the content of an ONNX file."""
    names = "fixed_inputs= is for ONNX files"
    if isinstance(model, OnnxModel):
        fix = "Pass them to OnnxModel(path, fixed_inputs=...)."
        return InputError(f"{names}, and this one is an OnnxModel already", fix=fix)
    found = f"the path {str(model)!r}" if isinstance(model, str | Path) else f"a {type(model).__name__}"
    return InputError(
        f"{names}, but the model is {found}",
        expected="a path that ends in .onnx, the bytes of a file, or a ModelProto",
        fix="Omit fixed_inputs=, and wrap the module in one that passes these arguments.",
    )


def _is_message(model: object) -> TypeGuard[ModelProto]:
    """Whether a model is an ONNX message, without an import of onnx."""
    return type(model).__name__ == "ModelProto"


def _trial_size(tensors: list[Tensor]) -> int:
    """Number of samples for a trial of a form: many small ones or few large ones."""
    largest = max((tensor[0].numel() for tensor in tensors if tensor.dim() and len(tensor)), default=1)
    return max(SAMPLES, min(TRIAL_SAMPLES, TRIAL_NUMBERS // max(largest, 1)))


def samples_of(graph: Graph, tensors: list[Tensor], synthesize: bool, seed: int, most: int = SAMPLES) -> list[Tensor]:
    """A batch of at most `most` samples; standard normal numbers, or bytes, if there is no data.

    Integers and booleans are never made up. Where they are given for fewer samples, the batch is as small.
    """
    generator = torch.Generator().manual_seed(seed)
    free = [bool(value.type.shape) and not isinstance(value.type.shape[0], int) for value in graph.inputs]
    made = [synthesize and tensor.is_floating_point() for tensor in tensors]
    given = zip(tensors, free, made, strict=True)
    count = min([most, *(len(tensor) for tensor, is_free, is_made in given if is_free and not is_made)])
    result = []
    pixels = tree.bytes_of(graph.input_tree)
    for index, (tensor, is_free, is_made) in enumerate(zip(tensors, free, made, strict=True)):
        if is_made:
            shape = (count, *tensor.shape[1:]) if is_free else tuple(tensor.shape)
            made_up = (
                torch.randint(256, shape, generator=generator)
                if index in pixels
                else torch.randn(shape, generator=generator)
            )
            tensor = made_up.to(tensor)
        result.append(row_major(tensor[:count] if is_free else tensor))
    return result
