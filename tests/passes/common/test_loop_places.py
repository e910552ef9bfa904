"""The quantizers of one place of an unrolled loop, and their grids."""

from __future__ import annotations

from qcompiler.ir.graph import Module
from qcompiler.passes import Pass, PassContext
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.common.loop_places import loop_places
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.targets import load_target
from tests.support.golden import leaf, lines, module, run

PLACE = {name: f' loc("cell", "", "cell.{name}")' for name in ("product", "sum", "state")}
INPUTS = "%x : f32[N, 3, 4]; %h : f32[1, N, 4]"


def step(number: int, state: str) -> list[str]:
    """h' = tanh(x_k + U h)."""
    return [
        f"%p{number} = linear({state}, %u) : f32[N, 4]{PLACE['product']}",
        f"%a{number} = slice(%x) {{axis = 1, start = {number}, stop = {number + 1}}} : f32[N, 1, 4]",
        f'%x{number} = reshape(%a{number}) {{shape = (dim"N", 4)}} : f32[N, 4]',
        f"%s{number} = add(%x{number}, %p{number}) : f32[N, 4]{PLACE['sum']}",
        f"%h{number} = tanh(%s{number}) : f32[N, 4]{PLACE['state']}",
    ]


FIRST = [
    leaf("u", "f32", 4, 4),
    f'%first = reshape(%h) {{shape = (dim"N", 4)}} : f32[N, 4]{PLACE["state"]}',
]


def placed(*text: str, target: str = "int8_dsp", until: type[Pass] = UnifyScales) -> Module:
    """A graph after the passes up to one."""
    subject = module("canonical", *text, inputs=INPUTS)
    context = PassContext(load_target(target))
    passes: list[Pass] = [InsertQuantizers(), FixRanges(), UnifyScales()]
    for item in passes:
        run(item, subject, context)
        if isinstance(item, until):
            return subject
    raise AssertionError(until)


def scales(subject: Module) -> dict[str, str]:
    """The scale of each quantizer by its name."""
    nodes = [node for node in subject.main.nodes if node.op == "fake_quantize"]
    return {node.name: node.inputs[1].name for node in nodes}


def test_a_place_has_one_grid_in_all_steps() -> None:
    subject = placed(*FIRST, *step(0, "%first"), *step(1, "%h0"), *step(2, "%h1"), "%h2")
    found = scales(subject)
    assert found["p0.q"] == found["p1.q"] == found["p2.q"]
    assert found["s0.q"] == found["s1.q"] == found["s2.q"]
    assert found["h.q"] == found["h0.q"] == found["h1.q"] == found["h2.q"], "the state that is given has that of all"
    assert len({found[name] for name in ("x.q", "p0.q", "s0.q", "h0.q")}) == 4
    assert [name for name in found if name.startswith("p") and "weight" in name] == ["p0.weight.q"], "quantized once"


def test_the_text_of_two_steps() -> None:
    subject = placed(*FIRST, *step(0, "%first"), *step(1, "%h0"), "%h1", until=InsertQuantizers)
    assert [[node.name for node in place] for place in loop_places(subject.main)] == [
        ["h.q", "h0.q", "h1.q"],
        ["p0.q", "p1.q"],
        ["s0.q", "s1.q"],
    ]
    run(FixRanges(), subject, PassContext(load_target("int8_dsp")))
    run(UnifyScales(), subject, PassContext(load_target("int8_dsp")))
    quantizers = [line.partition(" {")[0] for line in lines(subject) if "fake_quantize" in line]
    assert quantizers == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%h.q = fake_quantize(%h, %h.scale, %h.zero_point)",
        "%p0.weight.q = fake_quantize(%u, %p0.weight.scale, %p0.weight.zero_point)",
        "%p0.q = fake_quantize(%p0, %p0.scale, %p0.zero_point)",
        "%s0.q = fake_quantize(%s0, %s0.scale, %s0.zero_point)",
        "%h0.q = fake_quantize(%h0, %h.scale, %h.zero_point)",
        "%p1.q = fake_quantize(%p1, %p0.scale, %p0.zero_point)",
        "%s1.q = fake_quantize(%s1, %s0.scale, %s0.zero_point)",
        "%h1.q = fake_quantize(%h1, %h.scale, %h.zero_point)",
    ]


def test_a_grid_that_the_target_fixes_leads() -> None:
    """Results of tanh are in steps of 1/128 on this target; so is the state that is given."""
    subject = placed(*FIRST, *step(0, "%first"), *step(1, "%h0"), "%h1", target="tflite_int8")
    found = scales(subject)
    assert found["h.q"] == found["h0.q"] == found["h1.q"]
    assert float(subject.tensors["h0.scale"]) == 1 / 128
    assert found["h.q"] == "h0.scale"


def test_one_step_ties_the_given_state_to_the_result() -> None:
    subject = placed(*FIRST, *step(0, "%first"), "%h0", until=InsertQuantizers)
    assert [[node.name for node in place] for place in loop_places(subject.main)] == [["h.q", "h0.q"]]


def test_a_graph_without_loops_has_no_places() -> None:
    text = [leaf("u", "f32", 4, 4), "%a = linear(%x, %u) : f32[N, 3, 4]", "%b = tanh(%a) : f32[N, 3, 4]", "%b"]
    assert loop_places(placed(*text, until=InsertQuantizers).main) == []


def test_a_reshape_that_ties_a_state_stays() -> None:
    """The operand has the grid of the place, also if no shape changes: the model takes [N, 4] and returns [N, 4]."""
    text = [
        f'%first = reshape(%h) {{shape = (dim"N", 4)}} : f32[N, 4]{PLACE["state"]}',
        "%y = tanh(%first) : f32[N, 4]",
    ]
    for place, expected in ((True, ["%first = reshape", "%y = tanh", "return"]), (False, ["%y = tanh", "return"])):
        given = [line if place else line.partition(" loc")[0] for line in text]
        subject = module("float", *given, "%y", inputs="%h : f32[N, 4]")
        run(Canonicalize(), subject)
        assert [line.partition("(")[0].partition(" %")[0] for line in lines(subject)] == expected
