"""The artifact, the output folder of the compiler: its files, their hashes, saving, loading and running.

    out/  manifest.json     target, pipeline, nesting of inputs and outputs, verification report, hashes
          program.json      the integer program
          weights.safetensors   constants of the program
          model.onnx, c/    the forms of the back ends
          encodings.json    scale and zero point of each tensor, for other tools
          provenance.json   rewrites and refusals of each pass
          report.html       report for the browser

Files are written to `out.work/`, and `out/` is replaced in one step: see `storage.destination`. Loading needs neither
the model's class nor pickle. The same compile gives the same bytes: no file contains a time or a path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.artifact.difference import difference
from qcompiler.artifact.layout import (
    ENCODINGS,
    KIND,
    MANIFEST,
    PROGRAM,
    PROVENANCE,
    REPORT,
    REQUIRED,
    WEIGHTS,
    check_names,
    to_json,
)
from qcompiler.artifact.manifest import SCHEMA, Manifest, read_manifest, read_provenance
from qcompiler.artifact.report import Page, report_html, summary_html
from qcompiler.backends import PROGRAM as PROGRAM_FORM
from qcompiler.backends import encodings as encodings_files
from qcompiler.backends import known_backends
from qcompiler.backends.base import Emitted
from qcompiler.backends.integer import Executor, sum_of_tensors
from qcompiler.errors import ArtifactError, EncodingsError, InputError, QCompilerError, TargetError
from qcompiler.ir import calls, tree
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.settings import own_defaults
from qcompiler.ir.types import DType
from qcompiler.passes.base import check_seed
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Program
from qcompiler.program.roofline import Estimate, estimate
from qcompiler.quant.encoding import Encodings
from qcompiler.storage.destination import Destination, read_whole
from qcompiler.storage.reading import decode, exists, read_file
from qcompiler.targets import Target

if TYPE_CHECKING:
    from qcompiler.verification.forms import ReadBack
    from qcompiler.verification.report import Report

SAMPLES = 4
"""Batch size of the random inputs for verification."""
WHOLE_NUMBERS = (16, 2, 1)
"""Exclusive upper bounds for random integer inputs; the first bound that the program accepts is used."""


@dataclass(frozen=True, repr=False)
class Artifact:
    """A deployable model.

    Args:
        target: Hardware target.
        program: Integer program.
        forms: Forms of the back ends by name, each with its files or the reason for their absence.
        input_tree: Nesting of the model's arguments.
        output_tree: Nesting of the model's outputs.
        pipeline: Pipeline text of the passes.
        passes: Records of the passes: `pass_name`, `events`, `metrics`.
        islands: Float islands: `name`, `why`, and the shares of the model's `macs` and `elements`, in [0, 1].
        diagnostics: Summary of the quality, problems and notes; see `ir.diagnostics`.
        verification: Verification report of the compile; None if verification was off.
        sqnr: Signal-to-noise ratio of tensors and outputs against the float model, dB; see `validation.layers`.
        grids: Encodings of all tensors; None in a folder of a release that did not write them.
        input_names: Names of the model's arguments; empty in a folder of a release that did not write them.
        model: Name of the model's class; empty in a folder of a release that did not write it.
        versions: Versions of the packages that made the artifact, by name.
    """

    target: Target
    program: ProgramFiles
    forms: Mapping[str, Emitted]
    input_tree: tree.Tree
    output_tree: tree.Tree
    pipeline: str = ""
    passes: tuple[dict[str, Any], ...] = ()
    islands: tuple[dict[str, Any], ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    verification: dict[str, Any] | None = None
    sqnr: Mapping[str, float] = field(default_factory=dict)
    grids: Encodings | None = None
    input_names: tuple[str, ...] = ()
    model: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.summary("Artifact")

    def summary(self, kind: str) -> str:
        """Model, target, size and quality, in a few lines.

        Args:
            kind: The word before the name of the model.
        """
        constants = sum(array.nbytes for array in self.program.constants.values())
        sizes = [f"{constants:,} bytes of constants"]
        if self.memory:
            sizes.append(f"{self.memory['array']:,} bytes of activations")
        lines = [f"{kind}: {self.model or 'a model'} for {self.target.name}", f"Size: {', '.join(sizes)}."]
        return "\n".join([*lines, *map(str, self.diagnostics)])

    @property
    def memory(self) -> dict[str, int]:
        """Activation memory of the program in bytes; empty if there is no memory plan.

        `array`: size of the arena. `alive at once`: largest number of bytes alive at the same time, a lower bound for
        every plan. `tensors`: sum of all tensors, without reuse.
        """
        plan = self.program.program.memory
        if plan is None:
            return {}
        total = sum_of_tensors(self.program.program, plan.batch)
        return {"array": plan.bytes, "alive at once": plan.lower_bound, "tensors": total}

    @property
    def estimate(self) -> Estimate:
        """Roofline estimate of cycles, time, bytes moved and energy for one image, from the descriptor's figures.

        Quantities without figures in the descriptor are absent; `reasons` lists them.
        """
        return estimate(self.program, self.target)

    @own_defaults()
    def run(self, *inputs: object, **named: object) -> object:
        """Run the integer program.

        Args:
            inputs: The model's float arguments by position: tensors or NumPy arrays.
            named: The model's arguments by name.

        Returns:
            Dequantized outputs in the model's own tree: tensors for tensors, arrays for arrays. A loaded artifact does
            not have the model's classes: it gives a namedtuple with the same fields for a NamedTuple or dataclass, and
            a plain tuple, list or dict for their subclasses.

        Raises:
            InputError: The inputs do not fit the model, mix tensors and arrays, or hold an empty batch.
        """
        call = calls.bind(self.input_tree, self.input_names, inputs, named)
        results = Executor(self.program).run(_arrays(call.tensors))
        return call.results(self.output_tree, [torch.from_numpy(array) for array in results])

    def run_integer(self, *codes: Tensor) -> list[Tensor]:
        """Run the integer program from codes to codes.

        Args:
            codes: One tensor per flat input of the program, in the element type of the input's quantizer.

        Returns:
            The codes of each flat output.

        Raises:
            InputError: The number of tensors, a shape or an element type does not fit.
        """
        if any(not x.numel() for x in codes):
            raise InputError("the codes contain an empty batch", expected="at least one sample")
        results = Executor(self.program).run_integer(_arrays(codes))
        return [torch.from_numpy(array) for array in results]

    @own_defaults()
    def verify(self, *inputs: object, seed: int = 0) -> Report:
        """Compare the integer program with the other forms; the artifact does not contain the graphs.

        Code that this version does not write for the program is not run.

        Args:
            inputs: The model's float arguments; random inputs if none are given.
            seed: Seed for random inputs and codes.
        """
        from qcompiler.verification.deployed import Trial
        from qcompiler.verification.forms import Forms, verify

        check_seed(seed)
        leaves = self._synthesized(seed)
        trial = None if inputs else Trial(leaves)
        if inputs:
            leaves = calls.bind(self.input_tree, self.input_names, inputs, {}).tensors
        known = known_backends()
        emitted = dict(self.forms)
        for name, form in self.forms.items():
            reason = known[name].why_foreign(form.files, self.program) if form.files and name in known else None
            if reason is not None:
                emitted[name] = Emitted(reason=reason)
        forms = Forms(self.program, emitted, read_back=self.read_back, trial=trial)
        return verify(forms, leaves, self.target, seed=seed)

    def explain(self, name: str) -> str:
        """List what each pass did to the captured node or module `name`, and why.

        Raises:
            InputError: No pass touched a node of that name.
        """
        lines: list[str] = []
        known: dict[str, None] = {}
        for record in self.passes:
            for event in record["events"]:
                names = (event["node"], *event["origins"], event["where"].partition(",")[0])
                known.update(dict.fromkeys(filter(None, names)))
                if name in names or any(item.startswith(f"{name}.") for item in names):
                    verb = "" if event["kind"] == "rewrite" else "left alone: "
                    place = f" ({event['where']})" if event["where"] else ""
                    lines.append(f"{record['pass_name']}: %{event['node']}{place}: {verb}{event['detail']}")
        if not lines:
            near = difflib.get_close_matches(name, known, n=3)
            raise InputError(
                f"no pass changed or refused a node {name!r}",
                expected="the name of a node or a module path, such as features.0",
                fix=f"Did you mean {', '.join(near)}?" if near else None,
            )
        return "\n".join(lines)

    def encodings(self, version: str = "1.0.0") -> str:
        """Scale and zero point of each tensor as JSON in AIMET's format, under the names of the ONNX file.

        Args:
            version: Version of the format: `0.6.1`, `1.0.0` (as in `encodings.json`) or `2.0.0`.

        Raises:
            EncodingsError: The version is unknown.
            ArtifactError: The folder was written by a release without encodings.
        """
        if self.grids is None:
            raise ArtifactError(f"the artifact contains no {ENCODINGS}", fix="Compile the model again.")
        return encodings_files.write(self.grids, version)

    def report(self) -> str:
        """The HTML report of the artifact: without scripts, and below 300 kB."""
        return report_html(self.page)

    @property
    def page(self) -> Page:
        """The content of reports."""
        return Page(
            self.target,
            self.program,
            self.diagnostics,
            self.verification,
            self.sqnr,
            self.islands,
            self.passes,
            self.memory,
            self.estimate,
            {name: sum(map(len, form.files.values())) for name, form in self.forms.items()},
            self.model,
            self.versions,
        )

    def _repr_html_(self) -> str:
        """Verdict and quality, for notebooks."""
        return summary_html(self.page)

    def files(self) -> dict[str, bytes]:
        """Name and content of every file. The same compile gives the same bytes."""
        content = {
            PROGRAM: self.program.program_json().encode(),
            WEIGHTS: self.program.weights(),
            PROVENANCE: to_json({"pipeline": self.pipeline, "passes": list(self.passes)}),
            REPORT: self.report().encode(),
            **{name: data for form in self.forms.values() for name, data in form.files.items()},
        }
        if self.grids is not None:
            content[ENCODINGS] = self.encodings().encode()
        manifest = {
            "schema": SCHEMA,
            "model": self.model,
            "versions": dict(self.versions),
            "target": json.loads(self.target.to_json()),
            "input_tree": self.input_tree,
            "input_names": list(self.input_names),
            "output_tree": self.output_tree,
            "diagnostics": [item.plain() for item in self.diagnostics],
            "verification": self.verification,
            "islands": list(self.islands),
            # JSON has no infinity: null stands for a tensor that lost nothing.
            "sqnr_db": {name: None if ratio == math.inf else ratio for name, ratio in self.sqnr.items()},
            "forms": {
                PROGRAM_FORM: {"files": [PROGRAM, WEIGHTS], "reason": ""},
                **{name: {"files": sorted(form.files), "reason": form.reason} for name, form in self.forms.items()},
            },
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(content.items())},
        }
        return {MANIFEST: to_json(manifest), **content}

    def save(self, output: str | Path) -> Path:
        """Write the folder; an existing artifact is replaced in one step, or not at all.

        Returns:
            The folder, with links and `..` resolved.

        Raises:
            ArtifactError: `output` exists and is not an unchanged artifact, so that no user file is lost; another
                process writes it; or it cannot be written.
        """
        with self.destination(output) as destination:
            return destination.replace(self.files())

    @staticmethod
    def destination(output: str | Path) -> Destination:
        """The folder `output` as a destination for an artifact."""
        return Destination(output, KIND)

    @classmethod
    def check_destination(cls, output: str | Path) -> None:
        """Refuse a folder with content other than an artifact.

        Raises:
            ArtifactError: The folder, or the work folder next to it, is not an unchanged artifact.
        """
        cls.destination(output).check()

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read a folder written by `save`, even while another process replaces it.

        Raises:
            ArtifactError: A file is missing, altered, of an unknown version, or invalid.
        """
        return read_whole(cls.destination(folder), cls._read)

    @classmethod
    def _read(cls, path: Path) -> Artifact:
        if not exists(path / MANIFEST):
            raise ArtifactError(f"{path} contains no {MANIFEST}", expected="a folder written by save()")
        content = {MANIFEST: read_file(path / MANIFEST, where=str(path))}
        try:
            manifest = read_manifest(content[MANIFEST], MANIFEST)
            check_names(manifest)
            for name, digest in manifest.sha256.items():
                if not exists(path / name):
                    raise ArtifactError(f"{name} is missing", fix="Compile the model again.")
                content[name] = read_file(path / name, where=str(path))
                if hashlib.sha256(content[name]).hexdigest() != digest:
                    raise ArtifactError(f"{name} was altered", fix="Compile the model again.")
            return cls.parse(content)
        except ArtifactError as error:
            raise _within(path, error) from error.__cause__

    @classmethod
    def parse(cls, content: Mapping[str, bytes]) -> Artifact:
        """The artifact with the files `content`, the inverse of `files`. Hashes are not checked.

        Raises:
            ArtifactError: A file is missing or invalid.
        """
        manifest = read_manifest(content[MANIFEST], MANIFEST)
        missing = [name for name in REQUIRED if name not in content]
        if missing:
            raise ArtifactError(f"{missing[0]} is missing", where=MANIFEST, fix="Compile the model again.")
        provenance = read_provenance(content[PROVENANCE], PROVENANCE)
        program = ProgramFiles.parse(decode(content[PROGRAM], PROGRAM), content[WEIGHTS])
        forms = _forms(manifest, content)
        try:
            target = Target.of(manifest.target, MANIFEST)
        except TargetError as error:
            raise ArtifactError(f"the target: {error}", where=MANIFEST) from None
        grids = None
        if ENCODINGS in content:
            try:
                grids = _with_types(
                    encodings_files.parse(decode(content[ENCODINGS], ENCODINGS), ENCODINGS), program.program
                )
            except EncodingsError as error:
                raise ArtifactError(str(error), where=ENCODINGS) from None
        artifact = cls(
            target=target,
            program=program,
            forms=forms,
            grids=grids,
            input_tree=_tree(manifest.input_tree, "input_tree", len(program.program.inputs)),
            input_names=manifest.input_names,
            output_tree=_tree(manifest.output_tree, "output_tree", len(program.program.outputs)),
            pipeline=provenance["pipeline"],
            passes=tuple(provenance["passes"]),
            islands=tuple(island.model_dump() for island in manifest.islands),
            diagnostics=tuple(Diagnostic(item.code, item.data, item.where) for item in manifest.diagnostics),
            verification=None if manifest.verification is None else manifest.verification.model_dump(mode="json"),
            sqnr={name: math.inf if ratio is None else ratio for name, ratio in manifest.sqnr_db.items()},
            model=manifest.model,
            versions=manifest.versions,
        )
        if not (isinstance(artifact.input_tree, tuple) and artifact.input_tree[0] == "tuple"):
            raise ArtifactError("input_tree is not a tuple of arguments", where=MANIFEST)
        return artifact

    def read_back(self) -> ReadBack:
        """Parse the artifact's own files, write the result again, and report differences.

        An artifact has no state outside its files, so anything that reading loses or changes shows in the files written
        again.
        """
        from qcompiler.verification.forms import ReadBack

        first = self.files()
        try:
            loaded = Artifact.parse(first)
            second = loaded.files()
            # `encodings.json` (1.0.0) lacks the axis and the stored type of an encoding; version 2.0.0 has both.
            grids = [None if item.grids is None else item.encodings("2.0.0").encode() for item in (self, loaded)]
        except QCompilerError as error:
            return ReadBack(None, (str(error),))
        faults = [
            f"{name}: {difference(first.get(name), second.get(name))}"
            for name in sorted({*first, *second}, key=lambda name: name == MANIFEST)  # last: its hashes repeat faults
            if first.get(name) != second.get(name)
        ]
        if grids[0] != grids[1]:
            faults.append(f"{ENCODINGS}, version 2.0.0: {difference(*grids)}")
        return ReadBack(loaded.program, tuple(faults))

    def _synthesized(self, seed: int) -> list[Tensor]:
        """Random inputs of the program: normal numbers, and integers that the program accepts as indices and masks.

        The files do not record the number of rows of tables inside float islands. So integers are drawn below the first
        bound of `WHOLE_NUMBERS` on which the program runs.
        """
        tensors = self._drawn(seed, WHOLE_NUMBERS[0])
        if all(tensor.is_floating_point() for tensor in tensors):
            return tensors
        executor = Executor(self.program)
        for bound in WHOLE_NUMBERS:
            tensors = self._drawn(seed, bound)
            with contextlib.suppress(ArtifactError):
                executor.run([tensor.numpy() for tensor in tensors])
                return tensors
        return tensors

    def _drawn(self, seed: int, bound: int) -> list[Tensor]:
        """Normal numbers, and integers from 0 to below `bound`."""
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for name in self.program.program.inputs:
            declared = self.program.program.tensors[name]
            shape, dtype = [SAMPLES if size == -1 else size for size in declared.shape], DType(declared.dtype)
            if dtype.is_float:
                tensors.append(torch.randn(shape, generator=generator).to(dtype.torch))
            else:
                most = 2 if dtype is DType.BOOL else bound
                tensors.append(torch.randint(most, shape, generator=generator).to(dtype.torch))
        return tensors


def _arrays(tensors: Sequence[Tensor]) -> list[npt.NDArray[np.generic]]:
    """Tensors as NumPy arrays.

    Raises:
        InputError: NumPy cannot represent a tensor.
    """
    found = []
    for index, tensor in enumerate(tensors):
        try:
            found.append(tensor.detach().cpu().numpy())
        except (TypeError, RuntimeError, NotImplementedError):
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            raise InputError(
                f"input {index} is a {kind} tensor", expected="a dense tensor of the model's type"
            ) from None
    return found


def load(folder: str | Path) -> Artifact:
    """Read an artifact folder; see `Artifact.load`."""
    return Artifact.load(folder)


def _with_types(grids: Encodings, program: Program) -> Encodings:
    """The encodings completed with data that their file lacks: channel axis and sign of the stored type."""
    tensors = []
    for item in grids.tensors:
        declared = program.tensors.get(item.name)
        if item.is_parameter or declared is None:
            # The codes of a weight in blocks are a tensor of the program themselves: their factors multiply them there.
            declared = program.tensors.get(item.name.rstrip("_").removesuffix(encodings_files.CODES), declared)
        if declared is None:
            raise ArtifactError(f"{item.name!r} is not a tensor of the program", where=ENCODINGS)
        tensors.append(encodings_files.stored_as(item, DType(declared.dtype), declared.axis))
    return dataclasses.replace(grids, tensors=tuple(tensors))


def _forms(manifest: Manifest, content: Mapping[str, bytes]) -> dict[str, Emitted]:
    """The forms of back ends that a manifest lists; files of installed back ends are checked.

    Raises:
        ArtifactError: A file is missing, or its back end cannot have written it.
    """
    known, forms = known_backends(), {}
    for form, item in manifest.forms.items():
        missing = [name for name in item.files if name not in content]
        if missing:
            raise ArtifactError(f"{missing[0]} is missing", where=MANIFEST, fix="Compile the model again.")
        if form == PROGRAM_FORM:
            continue
        forms[form] = Emitted({name: content[name] for name in item.files}, item.reason)
        if item.files and form in known:
            known[form].check(forms[form].files)
    return forms


def _within(folder: Path, error: ArtifactError) -> ArtifactError:
    """The same error with the folder as its place."""
    place = str(folder) if error.where is None or error.where == str(folder) else f"{folder}, {error.where}"
    return ArtifactError(error.found, where=place, expected=error.expected, fix=error.fix)


def _tree(data: object, key: str, count: int) -> tree.Tree:
    """The nesting of `count` tensors.

    Raises:
        ArtifactError: `data` is not a nesting, or its leaves are not the numbers from 0 to `count` - 1.
    """
    try:
        found = tree.from_plain(data)
    except InputError as error:
        raise ArtifactError(f"{key}: {error}", where=MANIFEST) from None
    if tree.leaves(found) != list(range(count)):
        raise ArtifactError(f"{key} has the leaves {tree.leaves(found)}", where=MANIFEST, expected=f"0 to {count - 1}")
    return found
