"""Capture a model: trace it, turn it into a graph, and compare the graph with the model."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from qcompiler.errors import CaptureError, InputError, QCompilerError, UnsupportedError
from qcompiler.frontends import export as export_route
from qcompiler.frontends import fx as fx_route
from qcompiler.frontends.compare import compare
from qcompiler.frontends.convert import BATCH_BOUNDS, build
from qcompiler.frontends.examples import WAYS, Binding, bind_example, find_example_inputs
from qcompiler.frontends.finite import check_result, is_finite
from qcompiler.frontends.given import check_kind, check_mode, parse_device
from qcompiler.frontends.locations import failing_line
from qcompiler.frontends.precision import OTHER_FLOATS, Float32, as_float32, convert, types_of
from qcompiler.frontends.trace import Trace
from qcompiler.frontends.wrappers import unwrap
from qcompiler.ir import tree
from qcompiler.ir.graph import Module
from qcompiler.ir.settings import own_defaults

Route: TypeAlias = Literal["fx", "export", "given"]


@dataclass(frozen=True)
class Capture:
    """A captured model.

    Args:
        module: Its graph, at stage FLOAT; the tensors are copies.
        inputs: The example inputs, flat.
        route: How it was captured: `given` for an exported program or a graph module.
        diagnostics: Sentences on what the user may want to know.
    """

    module: Module
    inputs: list[Tensor]
    route: Route
    diagnostics: list[str] = field(default_factory=list)


def capture(
    model: nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    device: torch.device | str | None = None,
    precision: Literal["float32", "own"] = "float32",
) -> Capture:
    """Turn `model` into a graph that computes the same.

    The model is traced with torch.fx, and with torch.export where that fails or keeps a function whole that has no
    operator. The graph is compared with the model on
    the example inputs and at a second batch size. The model, its mode, the random state and torch's settings are left
    as they are.

    Args:
        model: A module in eval mode, a graph module, or an exported program.
        example_inputs: A tensor, a tuple of arguments or a dict of them by name; what the model tells of itself when
            None, see `find_example_inputs`.
        device: Where to run and to hold the tensors of the graph; where the model is when None.
        precision: `float32` converts halves and doubles. `own` keeps the types of a module, which serves comparisons in
            float64; quantization needs float32.

    Raises:
        InputError: The model is in train mode, or the example inputs are missing or do not fit.
        CaptureError: The model can be traced in no way, or the graph does not compute what the model does.
        UnsupportedError: The model calls a function that has no operator.
    """
    unwrapped, notes = unwrap(model)
    model = check_kind(unwrapped)
    binding = bind_example(model, find_example_inputs(model) if example_inputs is None else example_inputs)
    with _undisturbed(), own_defaults(), torch.no_grad():
        if isinstance(model, ExportedProgram):
            found = _capture_program(model, binding, device, keep=precision == "own")
        else:
            found = _capture_module(model, binding, device, keep=precision == "own")
    found.diagnostics[:0] = notes
    return found


def _capture_module(model: nn.Module, given: Binding, device: torch.device | str | None, *, keep: bool) -> Capture:
    check_mode(model)
    target = _device(model, given, device)
    given = given.with_tensors([x.to(target) for x in given.tensors])
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), _plain(target):
        own = copy_model(model).to(target)
        precision = _Precision(own, given, target, keep=keep)
        with precision.mode:
            reference = _Reference(copy_model(own, share_parameters=True), precision.binding)
        precision.look(own)
        reference.is_float32 = precision.differs
        dynamic = reference.batches is not None
        with precision.mode if precision.differs else contextlib.nullcontext():
            trace, route = _trace(own, precision.binding, dynamic)
            try:
                found = _finish(trace, route, reference)
            except UnsupportedError as error:
                taken_apart = _taken_apart(copy_model(own), route, reference, dynamic)
                if taken_apart is None:
                    raise
                taken_apart.diagnostics.append(f"Captured by torch.export, for by torch.fx {error.found}.")
                found = taken_apart
        precision.note(found)
    return found


def _capture_program(
    program: ExportedProgram, given: Binding, device: torch.device | str | None, *, keep: bool
) -> Capture:
    try:
        model = program.module()
    except Exception as error:  # whatever torch finds wrong in a program that was changed
        raise InputError(
            f"the exported program cannot be run: {_first_line(error)}", fix="Export the model again."
        ) from error
    target = _device(model, given, None)
    if device is not None and parse_device(device) != target:
        raise InputError(
            f"the exported program lives on {target}, not on {device}",
            fix="Export the model from the device where it shall run.",
        )
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), _plain(target):
        trace = export_route.trace_program(program, None)
        own = copy_model(model)
        precision = _Precision(own, given, target, keep=keep)
        with precision.mode:
            reference = _Reference(own, precision.binding, trace.bounds or BATCH_BOUNDS)
        precision.look(model)
        reference.is_float32 = precision.differs
        if precision.differs:
            trace.as_float32()
        with precision.mode if precision.differs else contextlib.nullcontext():
            found = _finish(trace, "given", reference)
        precision.note(found)
    tensors = found.module.tensors
    for name in tensors:
        tensors[name] = tensors[name].clone()
    return found


class _Precision:
    """The floating-point types of a model, which becomes one of float32.

    Args:
        model: A model of ours to keep: its tensors become float32.
        given: The call as the caller makes it.
        device: Where the model runs.
        keep: Whether the model keeps its types.

    Raises:
        InputError: The model does not run on these inputs as it is.
    """

    def __init__(self, model: nn.Module, given: Binding, device: torch.device, *, keep: bool) -> None:
        self.given, self.binding = given, given
        self.found: dict[str, None] = {}
        """Types that the forward asks for."""
        self.differs = False
        self.result: object = None
        """Results of the model in its own types; None where torch cannot compute them."""
        self.types: list[str] = []
        self.mode: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if not keep:
            self._convert(model, Float32(device))

    def _convert(self, model: nn.Module, mode: Float32) -> None:
        given = self.given
        self.mode, self.found = mode, mode.found
        self.types = types_of(model)
        self.differs = bool(self.types) or any(x.dtype in OTHER_FLOATS for x in given.tensors)
        if self.differs:
            self.result = self._result(copy_model(model))
            convert(model)
        self.binding = given.with_tensors(as_float32(given.tensors))

    def _result(self, model: nn.Module) -> object:
        try:
            return _run(model, self.given)
        except InputError as error:
            # torch lacks some functions for halves on the CPU: the model may be made for another device.
            if "not implemented for" not in str(error.__cause__):
                raise
            return None

    def look(self, model: nn.Module) -> None:
        """After a run in float32: whether the forward asks for other types."""
        if self.found and not self.differs:
            self.differs, self.result = True, self._result(copy_model(model))

    def note(self, found: Capture) -> None:
        """Let the trees of the graph tell the types that the caller gives and gets."""
        if not self.differs:
            return
        graph = found.module.main
        inputs = [x.dtype if x.dtype in OTHER_FLOATS else None for x in self.given.tensors]
        graph.input_tree = tree.with_types(graph.input_tree, inputs)
        if self.result is None:
            common = next((x for x in inputs if x is not None), None)
            outputs = [common if value.type.dtype.is_float else None for value in graph.outputs]
        else:
            leaves, _ = tree.flatten(self.result, "model's result", values=True)
            outputs = [x.dtype if x.dtype in OTHER_FLOATS else None for x in leaves]
        graph.set_outputs(graph.outputs, tree.with_types(graph.output_tree, outputs))
        names = [str(x).removeprefix("torch.") for x in (*inputs, *outputs) if x is not None]
        found.diagnostics.append(
            f"The model computes in {' and '.join(dict.fromkeys([*self.types, *names, *self.found]))}; "
            "it is compiled in float32, and what goes in and comes out keeps its type."
        )


def _taken_apart(model: nn.Module, route: Route, reference: _Reference, dynamic: bool) -> Capture | None:
    """The model by torch.export, which looks into functions that torch.fx keeps whole; None where that fails too."""
    if route != "fx":
        return None
    try:
        return _finish(export_route.export(model, reference.binding, dynamic), "export", reference)
    except Exception:  # the first reason is the one that the user can act on
        return None


class _Reference:
    """What the model itself gives: on the example, and at other batch sizes where it runs at any.

    The graph is made from two batch sizes, and is checked at a third one too: 1 where it can be, which is what a device
    runs, and where a squeeze or a `batch // 2` shows that went unnoticed.
    """

    def __init__(self, model: nn.Module, binding: Binding, bounds: tuple[int, int] = BATCH_BOUNDS) -> None:
        self.model, self.binding, self.bounds = model, binding, bounds
        self.is_float32 = False
        """Whether other floating-point types are float32 here."""
        held = {name: x.clone() for name, x in model.named_buffers()}
        self.results = [(binding.tensors, _run(model, binding))]
        self.nesting = _own_nesting(self.results[0][1])
        check_result(model, binding, self.results[0][1])
        self.batches: tuple[int, int] | None = None
        self.why_fixed = "no input has a batch axis"
        if binding.batch is not None:
            self._find_batches(binding.batch)
        self.written = [name for name, x in model.named_buffers() if name not in held or not torch.equal(x, held[name])]
        """Buffers to which the forward writes."""

    def check_repeats(self) -> None:
        """Refuse a model that gives another result at each call.

        Raises:
            CaptureError: It does, on the example inputs.
        """
        tensors, result = self.results[0]
        again, _ = tree.flatten(self.binding.call(self.model, tensors), "model's result", values=True)
        before, _ = tree.flatten(result, "model's result", values=True)
        if not all(torch.equal(x, y) for x, y in zip(before, again, strict=True)):
            raise CaptureError(
                "the model gives another result at each call on the same inputs",
                expected="a forward that does the same at every call",
                fix="Leave random numbers, and values that are kept from call to call, out of the forward.",
            )

    def _find_batches(self, batch: int) -> None:
        for other in (batch + 1, batch - 1):
            if other and self._runs(other):
                self.batches = (batch, other)
                break
        else:
            return
        low, high = self.bounds
        if low in self.batches:
            third = max(self.batches) + 1
            self.bounds = (low, high if third <= high and self._runs(third) else max(self.batches))
        else:
            self.bounds = (low if self._runs(low) else min(self.batches), high)

    def _runs(self, batch: int) -> bool:
        tensors = self.binding.resized(batch)
        try:
            result = self.binding.call(self.model, tensors)
        except Exception as error:  # whatever the model raises on a batch size that it was not made for
            self.why_fixed = _first_line(error)
            return False
        if not is_finite(result):
            self.why_fixed = f"it gives NaN or infinity at {batch}"
            return False
        self.results.append((tensors, result))
        return True


def _finish(trace: Trace, route: Route, reference: _Reference) -> Capture:
    binding = reference.binding
    trace.is_float32 = reference.is_float32
    module, diagnostics = build(trace, binding, reference.batches, reference.bounds)
    for tensors, result in reference.results:
        try:
            compare(module.main, reference.model, binding, tensors, result)
        except CaptureError as error:
            if not reference.written:
                reference.check_repeats()
                raise
            raise CaptureError(
                f"the result of the model depends on {reference.written[0]!r}, to which its forward writes",
                where=error.where,
                expected="a forward that does the same at every call",
                fix="Return the new value instead of keeping it.",
            ) from error
    if reference.written:
        names = ", ".join(map(repr, reference.written))
        diagnostics.append(f"The forward writes to {names}, which no result depends on: the writes are left out.")
    module.main.set_outputs(module.main.outputs, reference.nesting)
    if reference.batches is None:
        size = "" if binding.batch is None else f" to {binding.batch}"
        diagnostics.insert(
            0, f"The batch size is fixed{size}: the model does not run at another ({reference.why_fixed})."
        )
    return Capture(module, [x.clone() for x in binding.tensors], route, diagnostics)


def _trace(model: nn.Module, binding: Binding, dynamic: bool) -> tuple[Trace, Route]:
    """Trace with torch.fx, else with torch.export."""
    if isinstance(model, fx.GraphModule) and export_route.is_flat(model):
        return export_route.trace_graph_module(model), "given"
    given = isinstance(model, fx.GraphModule)
    try:
        return fx_route.trace(model, binding.bound), "given" if given else "fx"
    except Exception as error:  # whatever the user's forward raises on traced values
        fx_error = error
    try:
        return export_route.export(model, binding, dynamic), "given" if given else "export"
    except QCompilerError:
        raise
    except Exception as error:  # torch.export documents no common base of its errors
        place, text = failing_line(error)
        if place is None:
            place, text = failing_line(fx_error)
        raise CaptureError(
            f"the model can be captured neither by torch.fx ({_first_line(fx_error)}) "
            f"nor by torch.export ({_first_line(error)}){f': `{text}`' if text else ''}",
            where=place,
            expected="a forward that does the same for all values of its inputs",
            fix="Rewrite this line without a decision on tensor values, or capture the parts around it apart.",
        ) from error


def _own_nesting(result: object) -> tree.Tree:
    """How the model's result nests, in its own classes.

    Raises:
        CaptureError: It holds something else than tensors and numbers, or no tensor, or a class of it cannot be made
            from what it holds.
    """
    try:
        leaves, nesting = tree.flatten(result, "model's result", values=True)
    except InputError as error:
        fix = "Leave it out of what forward returns, or make it a tensor."
        raise CaptureError(error.found, where=error.where, expected=error.expected, fix=fix) from None
    if not leaves:
        raise CaptureError(
            f"the model returns {'None' if result is None else f'a {type(result).__name__} without tensors'}",
            expected="at least one tensor",
            fix="Return the result of forward.",
        )
    try:
        again, found = tree.flatten(tree.unflatten(nesting, leaves), "model's result", values=True)
        reason = "" if found == nesting and len(again) == len(leaves) else "it holds something else then"
    except Exception as error:  # whatever the constructor of the user's class raises
        reason = _first_line(error)
    if reason:
        raise CaptureError(
            f"the model returns a {type(result).__name__} that cannot be made from its fields: {reason}",
            expected="tensors in tuples, lists, dicts, NamedTuples and dataclasses",
        )
    return nesting


def _run(model: nn.Module, binding: Binding) -> object:
    """The model's result on the example.

    Raises:
        InputError: It fails; the module in which it does and torch's reason are given.
    """
    entered: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: entered.append(path)

    def leave(*_: object) -> None:
        entered.pop()

    handles = []
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        result = binding.call(model, binding.tensors)
    except Exception as error:
        described = ", ".join(
            f"{name}: {str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
            for name, x in zip(binding.tensor_names(), binding.tensors, strict=True)
        )
        floats = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
        raise InputError(
            f"the model does not run on the example inputs ({described}): {_first_line(error)}",
            where=entered[-1] if entered and entered[-1] else failing_line(error)[0],
            expected=f"inputs of the shape that the model takes; its parameters are {' and '.join(floats) or 'none'}",
            fix=WAYS,
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return result


def _device(model: nn.Module, binding: Binding, device: torch.device | str | None) -> torch.device:
    """Where to run: `device`, or where both the model and the example already are."""
    if device is not None:
        return parse_device(device)
    homes: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        homes.setdefault(tensor.device, name)
    if len(homes) > 1:
        spread = ", ".join(f"{name!r} on {home}" for home, name in homes.items())
        raise InputError(f"the model is spread over several devices: {spread}", fix="Move it to one, or give device=.")
    home = next(iter(homes), binding.tensors[0].device)
    for name, tensor in zip(binding.tensor_names(), binding.tensors, strict=True):
        if tensor.device != home:
            raise InputError(
                f"the example input {name!r} is on {tensor.device} and the model on {home}",
                fix="Move one to the other's device, or give device=.",
            )
    return home


def copy_model(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A deep copy whose forward may do what it likes.

    Raises:
        CaptureError: The model holds something that cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # deepcopy refuses tensors that carry a gradient history
    if share_parameters:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a __deepcopy__ raises
        raise CaptureError(
            f"the model cannot be copied: {_first_line(error)}",
            expected="a model that copy.deepcopy copies",
            fix="Keep locks, files and handles out of the modules.",
        ) from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the random states, and torch's warnings about tracing to ourselves: what matters is raised."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's own, which a forward may use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """Run as a program without settings would: the caller's autocast and inference mode are no part of the model.

    To leave inference mode turns gradients on, with which every activation would be kept.
    """
    with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
