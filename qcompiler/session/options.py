"""The options of a session: all settings of a compile except model and target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import InputError, PipelineError
from qcompiler.frontends.given import parse_device
from qcompiler.passes import Pass
from qcompiler.passes.apply_encodings import ApplyEncodings
from qcompiler.passes.base import Override, check_seed
from qcompiler.passes.check_encodings import CheckEncodings
from qcompiler.quant.encoding import Encodings
from qcompiler.session.batches import Forward
from qcompiler.session.pipeline import (
    Io,
    default_pipeline,
    for_training,
    model_as_it_is,
    parse_pipeline,
    quantized_model_passes,
    training_passes,
    with_encodings,
    with_external_types,
)
from qcompiler.targets import Target

Effort: TypeAlias = Literal["fast", "default", "best"]
Unmatched: TypeAlias = Literal["error", "ignore"]


@dataclass(frozen=True)
class Options:
    """Options of a session. The fields are the keywords of `qcompiler.compile` of the same names.

    Args:
        example_inputs: A tensor, tuple or dict; None: looked for in the calibration data and in the model.
        fixed_inputs: Inputs of an ONNX file that become constants.
        calibration_data: Batches that bind to the forward signature of the model.
        forward: Calls the model for a batch that does not bind itself.
        effort: Choice of passes where neither `passes` nor `pipeline` is given.
        overrides: Widths by node name, module path, glob or op.
        encodings: Scales and zero points that are given.
        unmatched_encodings: Treatment of names that no tensor has.
        passes: Passes instead of the default ones.
        pipeline: The same as text.
        io: Type at inputs and outputs of the program: real numbers, or codes.
        seed: Seed for all random number generators, 0 to 2^63 - 1.
        memory: Mebibytes of activations that passes keep in memory, 0 or more.
        device: Device on which calibration runs; None: where the model is.

    Raises:
        InputError: A value is out of range, whether the session uses it or not, or passes and pipeline are both given.
    """

    example_inputs: object = None
    fixed_inputs: Mapping[str, object] | None = None
    calibration_data: Iterable[object] | None = None
    forward: Forward | None = None
    effort: Effort = "default"
    overrides: Mapping[str, Override] = field(default_factory=dict)
    encodings: Encodings | None = None
    unmatched_encodings: Unmatched = "error"
    passes: Sequence[Pass] | None = None
    pipeline: str | None = None
    io: Io = "float"
    seed: int = 0
    memory: int = DEFAULT_MEMORY
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        if self.effort not in ("fast", "default", "best"):
            raise InputError(f"effort is {self.effort!r}", expected='"fast", "default" or "best"')
        if self.passes is not None and self.pipeline is not None:
            raise InputError("both passes= and pipeline= were passed", fix="Pass only one of them.")
        if self.unmatched_encodings not in ("error", "ignore"):
            raise InputError(f"unmatched_encodings is {self.unmatched_encodings!r}", expected='"error" or "ignore"')
        if self.io not in ("float", "uint8", "int8"):
            raise InputError(f"io is {self.io!r}", expected='"float", "uint8" or "int8"')
        if self.memory < 0:
            raise InputError(f"memory={self.memory}", expected="mebibytes, 0 or more")
        check_seed(self.seed)
        if self.device is not None:
            parse_device(self.device)

    @property
    def has_data(self) -> bool:
        """Whether there is calibration data."""
        return self.calibration_data is not None

    def deployment_passes(self, target: Target) -> tuple[Pass, ...]:
        """The passes from a captured graph to an INTEGER one.

        Raises:
            InputError: The effort is `best` without data.
            PipelineError: The pipeline text cannot be read, or own passes lack those that apply encodings.
        """
        chosen = self._chosen(target)
        return with_external_types(chosen if self.encodings is None else self._with_encodings(chosen), self.io)

    def passes_before_training(self, target: Target) -> tuple[Pass, ...]:
        """The passes from a captured graph to a calibrated QUANTIZED one that learns.

        Raises:
            InputError: As for `deployment_passes`.
            PipelineError: The pipeline text cannot be read.
        """
        asked = self._asked()
        if asked is not None:
            return tuple(for_training(asked))
        self._check_best()
        return training_passes(self.effort, target=target)

    def _chosen(self, target: Target) -> tuple[Pass, ...]:
        asked = self._asked()
        if asked is not None:
            return asked
        given = self.encodings
        if given is not None and given.own:
            return quantized_model_passes(self.effort)
        if given is not None and given.producer.get("pipeline"):
            return parse_pipeline(given.producer["pipeline"])
        self._check_best()
        found = default_pipeline(
            self.effort,
            per_channel=target.per_channel,
            weight_bits=min((target.weight_bits, *self._overridden_weight_bits())),
            activation_bits=target.activation_bits,
        )
        return found if given is None else model_as_it_is(found)

    def _overridden_weight_bits(self) -> Iterator[int]:
        """Widths of weights in the overrides; values that `Overrides` refuses are left out."""
        for value in self.overrides.values():
            bits = value.get("weight_bits") if isinstance(value, Mapping) else value
            if isinstance(bits, int) and not isinstance(bits, bool) and bits > 0:
                yield bits

    def _asked(self) -> tuple[Pass, ...] | None:
        """The passes that the caller gives; None if the effort chooses them."""
        if self.pipeline is not None:
            return parse_pipeline(self.pipeline)
        return None if self.passes is None else tuple(self.passes)

    def _check_best(self) -> None:
        if self.effort == "best" and not self.has_data:
            raise InputError(
                "effort='best' needs calibration_data", fix="Pass calibration_data=, or use effort='default'."
            )

    def _with_encodings(self, chosen: Sequence[Pass]) -> tuple[Pass, ...]:
        """`chosen` with the passes that apply and check encodings; passes of the user must hold them already."""
        if self.passes is None and self.pipeline is None:
            return with_encodings(chosen, self.unmatched_encodings)
        for kind, place in ((ApplyEncodings, "insert-quantizers"), (CheckEncodings, "unify-scales")):
            if not any(isinstance(item, kind) for item in chosen):
                raise PipelineError(
                    f"encodings= needs the pass {kind.name}, which is not in the pipeline", fix=f"Add it after {place}."
                )
        if self.unmatched_encodings == "error":
            return tuple(chosen)
        return tuple(CheckEncodings("ignore") if isinstance(item, CheckEncodings) else item for item in chosen)
