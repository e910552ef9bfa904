"""model.c with the arena, the calls in order and their arguments; and weights.c."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.backends.integer.c.ends import End, accessors
from qcompiler.backends.integer.c.frames import fill
from qcompiler.backends.integer.c.memory import SIZES
from qcompiler.backends.integer.c.text import comment, elements, filled, quoted, sizes
from qcompiler.backends.integer.c.writer import Constant, Step, Writer


def model_source(writer: Writer, ends: list[End], steps: list[Step], title: str) -> str:
    """`model.c`."""
    functions = accessors(writer, ends)
    calls = [_call(writer, index, step) for index, step in enumerate(steps)]
    # The arena has the widest type of its tensors, so that C lets all of them be read and written there.
    widest = max((SIZES[writer.ctype(tensor)] for tensor in writer.placed), default=1)
    order = [end.tensor for end in ends if end.kind == "input"] + [step.item.output for step in steps]
    places = []
    for tensor in (name for name in dict.fromkeys(order) if name in writer.placed):
        ctype = writer.ctype(tensor)
        at = writer.bytes_of(tensor).start // SIZES[ctype]
        note = comment(f"%{tensor} {_type(writer, tensor)}")
        places.append(f"/* {note} */\nstatic {ctype} *const {writer.placed[tensor]} = ({ctype} *)arena + {at};\n")
    return fill(
        "model.c",
        n=writer.name,
        N=writer.name.upper(),
        title=title,
        layout=writer.layout,
        alignment=writer.memory.alignment,
        element=f"int{8 * widest}_t",
        length=max(-(-writer.memory.bytes // widest), 1),
        places="".join(places),
        structures="".join(f"{text}\n" for step in steps for text in step.structures),
        calls="\n".join(calls),
        accessors=functions,
    )


def _call(writer: Writer, index: int, step: Step) -> str:
    item, constants = step.item, writer.files.constants
    read = [f"%{name} {_type(writer, name)}" for name in item.inputs if name not in constants]
    items = [f"{item.op}:", *(f"{text}," for text in read[:-1]), *read[-1:]]
    items.append(f"-> %{item.output} {_type(writer, item.output)}" + "".join(f"; {text}" for text in step.notes[:1]))
    items += [f"; {text}" for text in step.notes[1:]]
    if not step.lines:
        items.append("; in its place already")
    note = filled([comment(text) for text in items], "       ", f"    /* {index}. ").removesuffix("\n") + " */\n"
    note = note.replace(" ; ", "; ")
    statements = "".join(f"    {line}\n" for line in step.lines)
    name, codes = quoted(item.output.encode()), writer.pointer(item.output)
    before, after = (f"    HOOK({index}, {name}, {is_after}, {codes});\n" for is_after in (0, 1))
    return f"{note}{before}{statements}{after}    TRACE({index}, {codes});\n"


def _type(writer: Writer, tensor: str) -> str:
    declared = writer.program.tensors[tensor]
    text = f"{declared.dtype}{sizes(writer.shapes[tensor])}"
    if len(declared.scale) == 1 and len(declared.zero_point) == 1:
        zero_point = declared.zero_point[0]
        text += f" = {declared.scale[0]:.6g} (q {'-' if zero_point >= 0 else '+'} {abs(zero_point)})"
    return text


def weights_header(name: str, constants: Iterable[Constant]) -> str:
    """`weights.h`."""
    lines = [f"extern const {item.ctype} {item.symbol}[{item.array.size}]; /* {item.note} */\n" for item in constants]
    return fill("weights.h", n=name, N=name.upper(), declarations="".join(lines))


def weights_source(name: str, constants: Iterable[Constant]) -> str:
    """`weights.c`."""
    parts = [f'/* Constants of {name}. Written by qcompiler. */\n#include "weights.h"\n']
    for item in constants:
        head = f"const {item.ctype} {item.symbol}[{item.array.size}] = {{"
        parts.append(f"/* {item.note} */\n{head}\n{elements(item.array)}}};\n")
    return "\n".join(parts)
