"""Kills processes that write artifacts, and looks at what is left: `python -m tests.support.kills --count 200 --seed 0`.

Each process is forked from one that has imported everything. Half of them are killed at a random moment, half before
the n-th call of the system that changes the disk; half of them on a system that can exchange two names, half on one that
cannot. After each kill there must be the whole old artifact or the whole new one, and the next call must give the new
one without help; what an earlier call left must not show in a single byte.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import qcompiler
from tests.support.faults import faulty

Files = Mapping[str, bytes]
Action = Callable[[Path], object]

LONGEST = 300.0
"""Seconds after which a child that was not killed counts as one that hangs."""

HANGS = 1000
"""In the place of an exit code, of a child that did not end within `LONGEST`."""

DRAWS = 3
"""Moments drawn per kill at most: where more processes ended before it, the moments are wrong."""


@dataclass
class Found:
    """The outcomes of all kills.

    Args:
        seconds: Seconds of one call without a kill.
        calls: Calls of the system in it that change the disk, by whether an artifact was there before and whether the
            system can exchange names.
        counts: How often each outcome was seen.
        faults: Outcomes that must not happen.
    """

    seconds: float
    calls: Mapping[tuple[bool, bool], int]
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        calls = " or ".join(str(number) for number in sorted(set(self.calls.values())))
        lines = [f"one call takes {self.seconds:.2f} s and {calls} calls of the system that change the disk"]
        return "\n".join([*lines, outcomes, f"{len(self.faults)} faults", *self.faults])


def network() -> tuple[nn.Module, list[Tensor]]:
    """A network whose adaptive rounding takes five pieces, and data.

    Layers of these kinds give weights that are not row-major: if that showed after a resumption, it would show here.
    """
    generator = torch.Generator().manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return model, [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(3)]


def compiled(output: Path | None, effort: str = "best") -> qcompiler.Compiled:
    """The network compiled into `output`."""
    model, batches = network()
    return qcompiler.compile(
        model,
        "int8_dsp",
        calibration_data=batches,
        output=output,
        effort=effort,  # type: ignore[arg-type]
    )


def files(folder: Path) -> dict[str, bytes]:
    """Content by name; {} where there is no folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fork(action: Callable[[], object]) -> int:
    """The number of a child that runs `action`; it ends with 0, or with 1 and a message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork next to threads: none of them holds a lock
        child = os.fork()
    if child:
        return child
    code = 1
    faulthandler.dump_traceback_later(0.9 * LONGEST)  # says where a child hangs
    try:
        action()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the parent looks at the code
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child: its exit code, the negative number of the signal, or `HANGS`."""
    limit = time.monotonic() + LONGEST
    while time.monotonic() < limit:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS


def killed_at(at: int, action: Callable[[], object], *, exchanging: bool) -> Callable[[], None]:
    """`action`, which kills its process before call number `at`; -1: never."""

    def run() -> None:
        with faulty(at, lambda _: os.kill(os.getpid(), signal.SIGKILL), exchanging=exchanging):
            action()

    return run


def measured(action: Action, output: Path, *, exchanging: bool) -> tuple[float, int]:
    """Seconds of one call, and its calls of the system."""
    reading, writing = os.pipe()

    def run() -> None:
        with faulty(exchanging=exchanging) as calls:
            action(output)
        os.write(writing, str(len(calls.names)).encode())

    begin = time.monotonic()
    assert ended(fork(run)) == 0, "a call without a kill"
    seconds = time.monotonic() - begin
    count = int(os.read(reading, 32))
    os.close(reading)
    os.close(writing)
    return seconds, count


def kill(
    action: Action, old: qcompiler.Compiled, new: Files, count: int, seed: int, folder: Path, *, over: float = 1.0
) -> Found:
    """Kill `action` so many times; what ended before its kill is drawn again and counts as none.

    Args:
        action: Writes the new artifact into a folder.
        old: Content before the run.
        new: Content after a run without a kill.
        count: Number of kills.
        seed: Seed of the moments.
        folder: An empty folder.
        over: Share of the runs in which `old` is there before.

    Returns:
        What was seen.
    """
    generator = random.Random(seed)
    before = dict(old.artifact.files())
    cases = [(exists, exchanging) for exists in (True, False)[: 1 + (over < 1)] for exchanging in (True, False)]
    calls, times = {}, []
    for exists, exchanging in cases:
        output = folder / f"measured-{exists}-{exchanging}" / "out"
        if exists:
            old.save(output)
        seconds, calls[exists, exchanging] = measured(action, output, exchanging=exchanging)
        times.append(seconds)
    found = Found(min(times), calls)  # the shortest: later moments would find that the call has ended
    done = 0
    for draw in range(DRAWS * count):
        if done == count:
            break
        output = folder / f"{seed}-{draw}" / "out"
        exists, exchanging, by_call = generator.random() < over, generator.random() < 0.5, generator.random() < 0.5
        if exists:
            old.save(output)
        call = generator.randrange(calls[exists, exchanging]) if by_call else -1
        moment = generator.uniform(0.0, 1.05 * found.seconds)
        child = fork(killed_at(call, lambda output=output: action(output), exchanging=exchanging))  # type: ignore[misc]
        if not by_call:
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = ended(child)
        place = f"call {call}" if by_call else f"{moment:.3f} s"
        where = f"run {draw} of seed {seed}, killed at {place}, {'exchange' if exchanging else 'commit'}: "
        if code != -signal.SIGKILL:
            found.counts["ended before the kill, drawn anew"] += 1
            if code or files(output) != new:
                wrong = "hangs" if code == HANGS else f"ended with {code}"
                found.faults.append(f"{where}the call {wrong}")
            continue
        done += 1
        found.counts["killed at a call" if by_call else "killed at a moment"] += 1
        left = output.parent / "out.work" / "finished"
        found.counts["went on from finished pieces"] += left.is_dir() and any(left.glob("*.safetensors"))
        look(output, before if exists else {}, new, found, where, exchanging=exchanging)
        again = fork(killed_at(-1, lambda output=output: action(output), exchanging=exchanging))  # type: ignore[misc]
        if (code := ended(again)) or files(output) != new:
            wrong = "hangs" if code == HANGS else f"ends with {code}" if code else "gives something else"
            found.faults.append(f"{where}the next call {wrong}")
        if [path.name for path in output.parent.iterdir()] != ["out"]:
            found.faults.append(f"{where}something is left over")
    if done < count:
        found.faults.append(f"only {done} of {count} processes were killed before their end")
    found.counts["killed"] = done
    return found


def look(output: Path, before: Files, new: Files, found: Found, where: str, *, exchanging: bool) -> None:
    """Look at what a kill left: as any program does, and as the compiler does."""
    on_disk = files(output)
    if exchanging and on_disk not in (before, new):
        found.faults.append(f"{where}the folder holds {sorted(on_disk)}")
    try:
        loaded = dict(qcompiler.load(output).files())
    except qcompiler.errors.ArtifactError as error:
        loaded = {}
        if before:
            found.faults.append(f"{where}{error}")
    if loaded not in (before, new):
        found.faults.append(f"{where}neither the old nor the new artifact was loaded")
    outcome = "new artifact" if loaded == new else "old artifact" if before else "no artifact yet"
    found.counts[f"then the {outcome}" if loaded else f"then {outcome}"] += 1


def write_together(writers: int, folder: Path) -> collections.Counter[str]:
    """Let several processes compile into one output at once: writers, refusals, and all other errors."""
    old, new = started()
    output = old.save(folder / "together")
    reading, writing = os.pipe()

    def one() -> None:
        try:
            compiled(output)
        except qcompiler.errors.ArtifactError as error:
            found = "told" if "is being written by process" in str(error) else str(error)
        except BaseException as error:  # noqa: BLE001 - it is what is looked for
            found = f"{type(error).__name__}: {error}"
        else:
            found = "written"
        os.write(writing, f"{found}\n".encode())

    for child in [fork(one) for _ in range(writers)]:
        ended(child)
    os.close(writing)
    with os.fdopen(reading) as messages:
        seen = collections.Counter(messages.read().splitlines())
    if files(output) != new.artifact.files() or [path.name for path in folder.iterdir()] != ["together"]:
        seen["something else is there"] += 1
    return seen


def started() -> tuple[qcompiler.Compiled, qcompiler.Compiled]:
    """Two compiled models, the old and the new one, in a process that has then imported everything."""
    return compiled(None, "fast"), compiled(None)


def kill_compile(count: int, seed: int, folder: Path) -> Found:
    """Kill `compile(output=, effort="best")`."""
    old, new = started()
    return kill(compiled, old, new.artifact.files(), count, seed, folder, over=0.75)


def kill_save(count: int, seed: int, folder: Path) -> Found:
    """Kill `save`."""
    old, new = started()
    return kill(new.save, old, new.artifact.files(), count, seed, folder)


def main() -> int:
    """Kill, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills of each kind")
    parser.add_argument("--kind", choices=["save", "compile"], help="one kind alone")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--writers", type=int, default=0, help="processes that write one output, instead of kills")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.writers:
        with _outputs() as folder:
            seen = write_together(chosen.writers, folder)
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(seen.items()))
        sys.stdout.write(f"{chosen.writers} writers: {outcomes}\n")
        return int(not set(seen) <= {"told", "written"})
    failed = False
    for name, kind in (("save", kill_save), ("compile", kill_compile)):
        if chosen.kind not in (None, name):
            continue
        with _outputs() as folder:
            found = kind(chosen.count, chosen.seed, folder)
        sys.stdout.write(f"{name}: {found}\n")
        sys.stdout.flush()
        failed |= bool(found.faults)
    return int(failed)


@contextlib.contextmanager
def _outputs() -> Iterator[Path]:
    """A folder for outputs. What killed processes leave in the folder for temporary files goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("outputs", "temporary"):
            (Path(folder) / name).mkdir()
        tempfile.tempdir = str(Path(folder) / "temporary")
        try:
            yield Path(folder) / "outputs"
        finally:
            tempfile.tempdir = None


if __name__ == "__main__":
    sys.exit(main())
