"""Read a runtime configuration of AIMET as a target.

A runtime configuration selects the quantized tensors, their symmetry, granularity and widths, and the operators that
run in one step. Arithmetic and absent keys come from the base target. Every key that is present is honoured or refused
by name.

    defaults.params.is_symmetric              weights: symmetric
    defaults.ops.is_symmetric                 activations: symmetric
    defaults.strict_symmetric                 symmetric number types: narrow
    defaults.per_channel_quantization         weights: granularity; op_type.X: that of one op
    defaults.supported_kernels                bits and allowed_bits of activations and weights
    defaults.hw_version                       version of the target
    op_type.X.is_output_quantized             averages: whether they are tied to the grid of their input
    op_type.X.encoding_constraints            out_fixed
    supergroups                               supergroups
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from qcompiler.errors import TargetError
from qcompiler.ir.onnx_types import ELSEWHERE, OPS
from qcompiler.quant.spec import QuantSpec, ScaleKind
from qcompiler.storage.reading import parse_json, read_file
from qcompiler.targets.target import Target

__all__ = ["read_aimet_config"]

FOLDED = ("BatchNormalization", "Dropout", "Identity")
"""Operator types that are folded or removed before quantizers are inserted."""

PASSES = ("MatmulAdd", "LayerNormalization", "RMSNormalization")
"""Patterns that are captured as one operator."""


def read_aimet_config(path: str | Path, base: Target, *, ignore: Collection[str] = ()) -> Target:
    """Build the target that a runtime configuration describes.

    Args:
        path: Path of a JSON file.
        base: Target with the arithmetic and all settings that the file omits.
        ignore: Keys of the file without effect, such as `op_type.LayerNormalization` or `supergroups.3`, for keys that
            cannot be honoured and are not needed.

    Raises:
        TargetError: The file cannot be read, holds an unknown key or operator type, or requires something that the base
            does not support; all such keys are listed.
    """
    where = Path(path).name
    data = parse_json(read_file(path, TargetError), where, TargetError)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise _describe(error, where) from None
    return _Reading(file, base, where, ignore).target()


def _flag(value: object) -> object:
    """Convert the words True and False to booleans."""
    words: dict[object, bool] = {"True": True, "False": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in words:
        raise ValueError('expected "True" or "False"')
    return words[value]


Flag = Annotated[bool, BeforeValidator(_flag)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Width(_Closed):
    bitwidth: Literal[4, 8, 16, 32]
    dtype: Literal["int", "float"]


class _Kernel(_Closed):
    activation: _Width
    param: _Width | None = None


class _Ops(_Closed):
    is_input_quantized: Flag | None = None
    is_output_quantized: Flag | None = None
    is_symmetric: Flag | None = None


class _Param(_Closed):
    is_quantized: Flag | None = None
    is_symmetric: Flag | None = None


class _Defaults(_Closed):
    ops: _Ops = _Ops()
    params: _Param = _Param()
    strict_symmetric: Flag | None = None
    unsigned_symmetric: Flag | None = None
    per_channel_quantization: Flag | None = None
    supported_kernels: Annotated[tuple[_Kernel, ...], Field(min_length=1)] | None = None
    hw_version: str | None = None


class _Constraints(_Closed):
    min: float
    max: float | None = None


class _OpType(_Ops):
    per_channel_quantization: Flag | None = None
    supported_kernels: Annotated[tuple[_Kernel, ...], Field(min_length=1)] | None = None
    params: dict[str, _Param] = {}
    encoding_constraints: _Constraints | None = None


class _Supergroup(_Closed):
    op_list: Annotated[tuple[str, ...], Field(min_length=2)]


class _Input(_Closed):
    is_input_quantized: Flag | None = None


class _Output(_Closed):
    is_output_quantized: Flag | None = None


class _File(_Closed):
    defaults: _Defaults = _Defaults()
    params: dict[str, _Param] = {}
    op_type: dict[str, _OpType] = {}
    supergroups: tuple[_Supergroup, ...] | None = None
    supergroup_pass_list: tuple[str, ...] = ()
    model_input: _Input = _Input()
    model_output: _Output = _Output()


class _Reading:
    """One file applied to a base."""

    def __init__(self, file: _File, base: Target, where: str, ignore: Collection[str]) -> None:
        self.file = file
        self.base = base
        self.where = where
        self.ignore = dict.fromkeys(ignore, False)
        """Ignored key -> whether a refusal matched it."""
        self.problems: dict[str, list[str]] = {}
        """Reason -> the keys refused for that reason."""
        symmetric = file.defaults.ops.is_symmetric
        changed = base if symmetric is None else base.override(symmetric_activations=symmetric)
        self.data: dict[str, Any] = changed.descriptor.model_dump(mode="json", by_alias=True)
        names, dtypes = self.data["defaults"], self.data["dtypes"]
        if names["weight"] == names["activation"]:
            names["weight"] = f"{names['activation']}_weight"
            dtypes[names["weight"]] = dict(dtypes[names["activation"]])
        self.activation: dict[str, Any] = dtypes[names["activation"]]
        self.weight: dict[str, Any] = dtypes[names["weight"]]

    def target(self) -> Target:
        """The target.

        Raises:
            TargetError: Some keys are refused.
        """
        self._defaults()
        self._params()
        for name, rule in self.file.op_type.items():
            self._op_type(name, rule)
        layers = [rule for rule in self.data["op"] if rule["kind"] == "mac"]
        if all(rule["per_channel"] for rule in layers):
            self.weight["granularity"] = "per_channel"  # per-op settings mean the rule
        if self.file.supergroups is not None:
            groups = [self._supergroup(index, group) for index, group in enumerate(self.file.supergroups)]
            self.data["supergroup"] = [{"steps": steps} for steps in groups if steps]
        for index, name in enumerate(self.file.supergroup_pass_list):
            if name not in PASSES:
                self._refuse(f"supergroup_pass_list.{index}", f"{name!r} is not one of {', '.join(PASSES)}")
        self._refuse_false("model_input.is_input_quantized", self.file.model_input.is_input_quantized, "inputs")
        self._refuse_false("model_output.is_output_quantized", self.file.model_output.is_output_quantized, "outputs")
        idle = [key for key, used in self.ignore.items() if not used]
        if idle:
            raise TargetError(
                f"ignore lists {idle[0]!r}, but no such key is refused", where=self.where, fix="Remove it from ignore."
            )
        if self.problems:
            count = sum(map(len, self.problems.values()))
            listed = [f"{', '.join(keys)}: {reason}" for reason, keys in self.problems.items()]
            raise TargetError(
                f"{count} key{'s' * (count > 1)} of the configuration cannot be honoured: " + "; ".join(listed),
                where=self.where,
                expected=f"settings that {self.base.name} supports",
                fix="Choose another base, or ignore the keys that you do not need: load_target(..., ignore=[...]).",
            )
        identity = self.data["target"]
        stem = re.sub(r"[^A-Za-z0-9_.\-]", "_", self.where.removesuffix(".json")) or "config"
        identity["name"] = f"{stem}[base={self.base.name}]"
        identity["description"] = f"runtime configuration {self.where} on {self.base.name}"
        identity["version"] = self.file.defaults.hw_version or identity["version"]
        return Target.of(self.data, self.where)

    def _refuse(self, key: str, reason: str) -> None:
        """Record that `key` cannot be honoured, unless it is ignored."""
        for ignored in self.ignore:
            if key == ignored or key.startswith(f"{ignored}."):
                self.ignore[ignored] = True
                return
        self.problems.setdefault(reason, []).append(key)

    def _refuse_false(self, key: str, flag: bool | None, what: str) -> None:
        if flag is False:
            self._refuse(key, f"{what} cannot stay in float on an integer core")

    def _defaults(self) -> None:
        given = self.file.defaults
        self._refuse_false("defaults.ops.is_output_quantized", given.ops.is_output_quantized, "activations")
        self._refuse_false("defaults.ops.is_input_quantized", given.ops.is_input_quantized, "activations")
        if given.strict_symmetric is not None:
            self.weight["narrow"] = given.strict_symmetric
            if self.activation["symmetric"] and self.activation["signed"]:
                self.activation["narrow"] = given.strict_symmetric
        if given.unsigned_symmetric:
            self._refuse(
                "defaults.unsigned_symmetric",
                "all activations must have the same signedness",
            )
        if given.per_channel_quantization is not None:
            self.weight["granularity"] = "per_channel" if given.per_channel_quantization else "per_tensor"
        if given.supported_kernels is not None:
            widths = self._widths("defaults.supported_kernels", given.supported_kernels)
            for number, bits in zip((self.activation, self.weight), widths, strict=True):
                if bits:
                    number["bits"] = number["bits"] if number["bits"] in bits else bits[0]
                    number["allowed_bits"] = sorted(bits)

    def _widths(self, key: str, kernels: Sequence[_Kernel]) -> tuple[list[int], list[int]]:
        """Widths of activations and of weights, in the order of the file; without the widths of refused kernels."""
        pairs: list[tuple[int, int]] = []
        limits = [{number["bits"], *number["allowed_bits"]} for number in (self.activation, self.weight)]
        for index, kernel in enumerate(kernels):
            place = f"{key}.{index}"
            if kernel.param is None:
                self._refuse(place, "the kernel has no param")
            elif "float" in (kernel.activation.dtype, kernel.param.dtype):
                self._refuse(place, "the integer core has no floating-point kernels")
            else:
                pair = (kernel.activation.bitwidth, kernel.param.bitwidth)
                lacking = [
                    f"{what} of {bits} bits"
                    for what, bits, known in zip(("activations", "weights"), pair, limits, strict=True)
                    if bits not in known
                ]
                if lacking:
                    self._refuse(place, f"{self.base.name} does not support {' and '.join(lacking)}")
                else:
                    pairs.append(pair)
        activations, weights = (
            (list(dict.fromkeys(column)) for column in zip(*pairs, strict=True)) if pairs else ([], [])
        )
        absent = [(a, w) for a in activations for w in weights if (a, w) not in pairs]
        if absent:
            a, w = absent[0]
            self._refuse(
                key, f"{a}-bit activations with {w}-bit weights are missing; all pairs of widths must be allowed"
            )
        return activations, weights

    def _params(self) -> None:
        """Weights and biases: from `params`, else from `defaults.params`."""
        rules = {"defaults.params": self.file.defaults.params}
        rules.update({f"params.{name}": rule for name, rule in self.file.params.items()})
        for field, refuse in (("is_quantized", self._unquantized), ("is_symmetric", self._asymmetric)):
            key = "params.weight" if getattr(rules.get("params.weight"), field, None) is not None else "defaults.params"
            if getattr(rules[key], field) is False:
                refuse(f"{key}.{field}")
        for name, rule in self.file.params.items():
            if name == "bias":
                self._bias(f"params.{name}", rule)
            elif name != "weight" and rule.is_quantized:
                self._refuse(f"params.{name}.is_quantized", "the integer core has only weights and biases")

    def _unquantized(self, key: str) -> None:
        self._refuse(key, "weights cannot stay in float on an integer core")

    def _asymmetric(self, key: str) -> None:
        self._refuse(key, "weights must be symmetric: a weight zero point needs a sum over the input for each output")

    def _bias(self, key: str, rule: _Param) -> None:
        """Check a bias, which is an integer in steps of the accumulator for either value of `is_quantized`."""
        if rule.is_quantized and rule.is_symmetric is False:
            self._refuse(f"{key}.is_symmetric", "a bias has no zero point: it is in steps of the accumulator")

    def _op_type(self, name: str, given: _OpType) -> None:
        key = f"op_type.{name}"
        if not self._is_known(key, name):
            return
        before = sum(map(len, self.problems.values()))
        for op in self._ops(name):
            kind = self._kind(op)
            self._refuse_false(f"{key}.is_input_quantized", given.is_input_quantized, "inputs")
            self._output(f"{key}.is_output_quantized", op, kind, given.is_output_quantized)
            if given.is_symmetric not in (None, self.activation["symmetric"]):
                self._refuse(f"{key}.is_symmetric", "all activations must have the same symmetry")
            self._per_channel(f"{key}.per_channel_quantization", op, kind, given.per_channel_quantization)
            for parameter, rule in given.params.items():
                self._parameter(f"{key}.params.{parameter}", parameter, op, kind, rule)
            if given.supported_kernels is not None:
                self._kernels_of_one(f"{key}.supported_kernels", given.supported_kernels)
            if given.encoding_constraints is not None:
                self._constrain(f"{key}.encoding_constraints", op, kind, given.encoding_constraints)
            if sum(map(len, self.problems.values())) > before:
                return  # once per operator type

    def _is_known(self, key: str, name: str) -> bool:
        if name in OPS or name in ELSEWHERE:
            return True
        near = difflib.get_close_matches(name, [*OPS, *ELSEWHERE], n=1)
        self._refuse(key, f"there is no operator type {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return False

    def _ops(self, name: str) -> list[str]:
        """The operators of a type that the base computes in integers; settings for other operators are ignored."""
        return [op for op in OPS.get(name, ()) if name not in FOLDED and self.base.supports(op)]

    def _kind(self, op: str) -> str:
        rule = self.base.op_rule(op)
        return "" if rule is None else rule.kind

    def _output(self, key: str, op: str, kind: str, flag: bool | None) -> None:
        if kind == "average" and flag is not None:
            self._untie(op)
            if not flag:
                self.data["tie"].append({"ops": [op], "tensors": "inputs_and_output"})
        elif flag and kind in ("movement", "exact"):
            self._refuse(key, f"{op} only moves elements, so its result keeps the grid of its input")
        elif kind not in ("movement", "exact"):
            self._refuse_false(key, flag, f"results of {op}")

    def _untie(self, op: str) -> None:
        ties = [{**tie, "ops": [other for other in tie["ops"] if other != op]} for tie in self.data["tie"]]
        self.data["tie"] = [tie for tie in ties if tie["ops"]]

    def _per_channel(self, key: str, op: str, kind: str, flag: bool | None) -> None:
        if flag is None:
            return
        if kind == "mac":
            self._rule(op)["per_channel"] = flag
        elif op == "prelu" and not flag:
            self._refuse(key, "slopes are exact in tables, so they have no scale")
        elif kind == "normalization" and flag:
            self._refuse(key, f"the constants of {op} have one scale, not one per channel")

    def _parameter(self, key: str, name: str, op: str, kind: str, rule: _Param) -> None:
        """Apply the settings of one parameter of one operator."""
        if kind in ("mac", "normalization") and name == "bias":
            self._bias(key, rule)
        elif kind in ("mac", "normalization") and name == "weight":
            if rule.is_quantized is False:
                self._unquantized(f"{key}.is_quantized")
            if rule.is_symmetric is False:
                self._asymmetric(f"{key}.is_symmetric")
        elif op == "prelu" and name == "weight":
            if rule.is_quantized:
                self._refuse(f"{key}.is_quantized", "slopes are exact in tables, so they are not quantized")
        else:
            self._refuse(key, f"{op} has no parameter {name!r}")

    def _kernels_of_one(self, key: str, kernels: Sequence[_Kernel]) -> None:
        """Check that the widths of one operator are the widths of all operators."""
        pairs = {
            (kernel.activation.bitwidth, kernel.param.bitwidth if kernel.param else None)
            for kernel in kernels
            if kernel.activation.dtype == "int" and (kernel.param is None or kernel.param.dtype == "int")
        }
        activations, weights = ({number["bits"], *number["allowed_bits"]} for number in (self.activation, self.weight))
        whole = {(a, w) for a in activations for w in (weights if all(pair[1] for pair in pairs) else {None})}
        if len(pairs) != len(kernels) or pairs != whole:
            self._refuse(key, "all operators must have the same widths")

    def _constrain(self, key: str, op: str, kind: str, given: _Constraints) -> None:
        """Turn a range with both ends into a fixed grid; the range of a ReLU begins at 0 in any case."""
        if given.max is None:
            if op != "relu" or given.min != 0 or self.activation["symmetric"]:
                self._refuse(key, "the range has only one end: set both min and max")
            return
        if kind in ("movement", "exact") or not given.min < given.max:
            self._refuse(
                key, f"{op} only moves elements" if kind in ("movement", "exact") else "min must be less than max"
            )
            return
        number = self.activation
        spec = QuantSpec(
            number["bits"],
            signed=number["signed"],
            symmetric=number["symmetric"],
            narrow=number["narrow"],
            scale_kind=ScaleKind(number["scale"]),
        )
        if spec.symmetric and not spec.signed and given.min < 0:
            self._refuse(key, "activations are unsigned and symmetric, so min must not be negative")
            return
        from qcompiler.quant.affine import qparams_from_range  # loads torch, needed by few configurations

        scale, zero_point = qparams_from_range(given.min, given.max, spec)
        rule = self._rule(op)
        rule["out_fixed"] = {"scale": float(scale), "zero_point": int(zero_point), "bits": spec.bits}
        if kind == "table" and rule["per_channel"]:
            rule["per_channel"] = False  # channels that share a grid cannot have tables that differ by a factor

    def _rule(self, op: str) -> dict[str, Any]:
        """The rule for `op` alone."""
        for position, rule in enumerate(self.data["op"]):
            if op in rule["names"]:
                if len(rule["names"]) > 1:
                    own = {**rule, "names": [op]}
                    rule["names"] = [name for name in rule["names"] if name != op]
                    self.data["op"].insert(position + 1, own)
                    return own
                break
        found: dict[str, Any] = next(rule for rule in self.data["op"] if op in rule["names"])
        return found

    def _supergroup(self, index: int, group: _Supergroup) -> list[list[str]]:
        """The steps of a supergroup; empty if no step is left or the group cannot apply."""
        key = f"supergroups.{index}.op_list"
        known = [self._is_known(f"{key}.{position}", name) for position, name in enumerate(group.op_list)]
        if not all(known):
            return []
        steps: list[list[str]] = []
        for name in group.op_list:
            if name in FOLDED:
                continue
            ops = self._ops(name)
            if not ops:
                return []
            if self._kind(ops[0]) != "movement":  # activations are moved before ops that only move elements
                steps.append(ops)
        if any(op not in ("relu", "clamp") for ops in steps[1:] for op in ops):
            self._refuse(
                key, "only Relu and Clip can follow in a supergroup; other operators read codes, not accumulators"
            )
            return []
        return steps if len(steps) > 1 else []


def _describe(error: ValidationError, where: str) -> TargetError:
    finding = error.errors()[0]
    key = ".".join(str(part) for part in finding["loc"])
    if finding["type"] != "extra_forbidden":
        return TargetError(f"{key}: {finding['msg'].removeprefix('Value error, ')}", where=where)
    near = difflib.get_close_matches(str(finding["loc"][-1]), _keys(), n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Remove it."
    return TargetError(f"there is no key {key!r} in a runtime configuration", where=where, fix=hint)


def _keys() -> list[str]:
    models: Iterable[type[BaseModel]] = (
        _File, _Defaults, _OpType, _Param, _Kernel, _Width, _Supergroup, _Constraints, _Input, _Output,
    )  # fmt: skip
    return sorted({name for model in models for name in model.model_fields})
