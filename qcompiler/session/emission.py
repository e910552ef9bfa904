"""Emission of an artifact: the forms of all back ends, and the metadata of the compile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from torch import Tensor

from qcompiler.artifact.artifact import Artifact
from qcompiler.artifact.layout import check_paths
from qcompiler.backends import encodings as grids
from qcompiler.backends import known_backends
from qcompiler.backends.base import Emitted, Lowered, blaming
from qcompiler.backends.integer import emit as emit_program
from qcompiler.errors import UnsupportedError
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.events import Record
from qcompiler.passes import Pass
from qcompiler.passes.apply_encodings import LOWEST_WEIGHTS, ApplyEncodings
from qcompiler.passes.base import Override
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.check_encodings import CheckEncodings
from qcompiler.passes.common.kept_factors import SIXTEENTHS
from qcompiler.passes.common.outline import FLOAT_ISLAND
from qcompiler.passes.external_types import ExternalTypes
from qcompiler.passes.fold_normalization import MORE_NOISE, SHIFT_STAYS
from qcompiler.session.pipeline import Io, print_pipeline, without_encodings
from qcompiler.session.quality import measure
from qcompiler.session.stages import Captured, State
from qcompiler.targets import Target

__all__ = ["emit"]

PACKAGES = ("qcompiler", "torch", "onnx")
"""Packages whose versions an artifact names."""


def emit(
    captured: Captured,
    canonical: State,
    quantized: State,
    integer: State,
    *,
    passes: Sequence[Pass],
    target: Target,
    samples: Sequence[Tensor],
    overrides: Mapping[str, Override],
    batches: Iterable[Sequence[Tensor]] | None,
    seed: int,
) -> Callable[..., Artifact]:
    """Emit all forms of a model, which are not yet compared with each other.

    Args:
        captured: The captured model.
        canonical: The state before the quantizers; the captured one where that is quantized already.
        quantized: The calibrated state.
        integer: The lowered state.
        passes: All passes between `captured` and `integer`.
        target: The hardware.
        samples: Flat inputs, for the self-test of the C and the noise of each tensor.
        overrides: Widths that the caller chose.
        batches: Calibration data as flat batches; None without data.
        seed: Seed of the random codes of the self-test.

    Returns:
        Function that builds the artifact; its keywords are `verification`, the report of the comparison as plain data,
        and `compared`, the diagnostics of the comparison: the first belongs before the summary, the others after it.
    """
    graph = integer.module.main
    layout = target.layout
    program = emit_program(graph, layout.activations, layout.weights, layout.alignment, target.packing)
    io: Io = next((item.io for item in passes if isinstance(item, ExternalTypes)), "float")
    model = Lowered(captured.name, graph, program, [x.numpy() for x in samples], seed, io)
    # The recorded pipeline leaves out the passes that apply given encodings, so that found and given encodings produce
    # the same file. After training no pipeline leads from the model to the weights, so none is recorded.
    pipeline = "" if captured.records else print_pipeline(without_encodings(passes))
    events = [event for record in integer.records for event in record.events]
    rescaled = {event.node: str(event.data[SIXTEENTHS]) for event in events if SIXTEENTHS in event.data}
    about = grids.About(pipeline, rescaled, _quantizer_args(target, passes))
    # An island without a consumer of its result is not part of the program.
    islands = tuple(dict(event.data) for event in events if event.code == FLOAT_ISLAND.code)
    islands = tuple(item for item in islands if item["name"] in program.program.islands)
    quality = measure(
        captured, canonical, quantized, target=target, samples=samples, overrides=overrides, batches=batches
    )
    notes = (
        *captured.diagnostics,
        *([] if program.program.memory else [Diagnostic("no-memory-plan")]),
        *_given_summary(integer.records),
        *_normalization_summary(integer.records),
        *_island_summary(islands),
    )
    build = functools.partial(
        Artifact,
        target=target,
        program=program,
        forms=emit_forms(model, target),
        grids=grids.collect(graph, calibrated=quantized.module.main, about=about),
        input_tree=graph.input_tree,
        input_names=tuple(graph.input_names),
        output_tree=graph.output_tree,
        pipeline=", ".join(filter(None, (captured.pipeline, print_pipeline(passes)))),
        passes=tuple(record.plain() for record in integer.records),
        islands=islands,
        model=captured.name,
        versions=_versions(),
        # A tensor that is 0 in the float model has no ratio.
        sqnr={name: float(f"{ratio:.2f}") for name, ratio in quality.sqnr.items() if ratio > -math.inf},
    )

    def artifact(verification: dict[str, object] | None, compared: Sequence[Diagnostic]) -> Artifact:
        told = {(item.code, item.data.get("input")) for item in quality.diagnostics}
        new = [item for item in compared[1:] if (item.code, item.data.get("input")) not in told]
        diagnostics = (*compared[:1], *quality.diagnostics, *new, *notes)
        return build(verification=verification, diagnostics=diagnostics)

    return artifact


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of the packages that decide the bytes of an artifact, without the suffixes of their builds."""
    return {name: metadata.version(name).partition("+")[0] for name in PACKAGES}


def emit_forms(model: Lowered, target: Target) -> dict[str, Emitted]:
    """The form of every back end, or the reason why it cannot express the model.

    Raises:
        PluginError: A back end of a plugin cannot be loaded, fails, or writes a path that is taken.
    """
    known, wanted = known_backends(), target.descriptor.forms
    forms = {name: Emitted(reason="no back end of this name is installed") for name in wanted if name not in known}
    for name, backend in known.items():
        if backend.on_request and name not in wanted:
            continue
        try:
            with blaming(backend):
                forms[name] = Emitted(backend.emit(model, target))
        except UnsupportedError as error:
            forms[name] = Emitted(reason=error.found if error.where is None else f"{error.found}, at {error.where}")
    check_paths(forms)
    return forms


_SCHEMES = {
    "min_max": "post_training_tf",
    "sqnr": "post_training_tf_enhanced",
    "percentile": "post_training_percentile",
}
"""AIMET's names of calibration methods."""


def _quantizer_args(hardware: Target, chosen: Sequence[Pass]) -> dict[str, object]:
    """The global quantizer arguments of an encodings file."""
    weight = hardware.descriptor.dtypes[hardware.descriptor.defaults.weight]
    found: dict[str, object] = {
        "activation_bitwidth": hardware.activation_bits,
        "param_bitwidth": weight.bits,
        "dtype": "int",
        "is_symmetric": weight.symmetric,
        "per_channel_quantization": hardware.per_channel,
    }
    for item in chosen:
        if isinstance(item, CalibrateActivations) and item.method in _SCHEMES:
            found["quant_scheme"] = _SCHEMES[item.method]
    return found


def _given_summary(records: Sequence[Record]) -> Iterator[Diagnostic]:
    """Notes on the use of encodings."""
    for record in records:
        if record.pass_name == CheckEncodings.name:
            yield Diagnostic("encodings-set", {key: record.metrics[key] for key in ("given", "calibrated")})
            for key, code in (("added", "quantizers-added"), ("lacking", "grids-lacking"), ("lost", "quantizers-lost")):
                if record.metrics.get(key):
                    yield Diagnostic(code, {"names": record.metrics[key]})
            if "unmatched" in record.metrics:
                yield Diagnostic("encodings-ignored", {"names": record.metrics["unmatched"]})
        if record.pass_name == ApplyEncodings.name:
            for event in record.events:
                if event.code == LOWEST_WEIGHTS.code:
                    yield Diagnostic("lowest-weights", {"quantizer": event.node, **event.plain()["data"]}, event.where)


def _normalization_summary(records: Sequence[Record]) -> Iterator[Diagnostic]:
    """Normalizations of inputs that are operators of the program."""
    for record in records:
        for event in record.events:
            if event.code in (MORE_NOISE.code, SHIFT_STAYS.code):
                yield Diagnostic("normalization-stays", {"node": event.node, "reason": event.detail}, event.where)


def _island_summary(islands: Sequence[Mapping[str, Any]]) -> Iterator[Diagnostic]:
    if islands:
        shares = {key: sum(item[key] for item in islands) for key in ("macs", "elements")}
        yield Diagnostic("float-islands", {"names": [item["name"] for item in islands], **shares})
