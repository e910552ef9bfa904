"""The text form of graphs: printed text parses back to the same graph.

    graph @main stage=quantized {
      input %x : f32[N, 3, 8, 8]
      bound N 1 65536
      %conv.weight = parameter() {ref = "conv.weight", dtype = "f32", shape = (4, 3, 3, 3)} : f32[4, 3, 3, 3]
      %conv = conv2d(%x, %conv.weight) {padding = (1, 1, 1, 1)} : f32[N, 4, 8, 8] loc("conv", "net:Net.forward:7")
      %conv.q = fake_quantize(%conv, %s, %z) {spec = spec"s8"} : f32[N, 4, 8, 8] from("conv")
      return %conv.q
    }

One node per line; attributes equal to their default are omitted. Names other than identifiers with dots are quoted.
Numbers are Python's, including `inf` and `nan`. Symbolic sizes are written as `dim"..."`, quantizers as `spec"..."`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar, cast

from torch import Tensor

from qcompiler.errors import ParseError, QCompilerError
from qcompiler.ir import tree
from qcompiler.ir.attributes import Attribute, Scalar, plain
from qcompiler.ir.dims import Dim, format_dim, parse_dim
from qcompiler.ir.graph import Graph, Location, Module, Node, Value
from qcompiler.ir.registry import REQUIRED, Trait, op
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.quant.spec import QuantSpec

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?(?:inf|nan|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_SIZES = re.compile(r"[^\]\n]*")
_BLANK = re.compile(r"[ \t\r]*(?:#[^\n]*)?")
_VALUE = 'a number, a string, true, false, none, spec"..." or dim"..."'
_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}


def print_module(module: Module, *, locations: bool = True) -> str:
    """All graphs of `module`. Tensors are named, not printed.

    Args:
        module: The graphs.
        locations: Whether to print the locations of nodes.
    """
    return "\n".join(print_graph(graph, locations=locations) for graph in module.graphs.values())


def print_graph(graph: Graph, *, locations: bool = True) -> str:
    """One graph; see the module docstring for the form."""
    lines = [f"graph @{_name(graph.name)} stage={graph.stage} {{"]
    lines += [f"  input {_value(value)} : {value.type}" for value in graph.inputs]
    if graph.input_names:
        lines.append("  names " + ", ".join(_string(name) for name in graph.input_names))
    lines += [f"  bound {name} {low} {high}" for name, (low, high) in graph.bounds.items()]
    lines += [f"  {_node(node, locations)}" for node in graph.nodes]
    if graph.input_tree != tree.single(len(graph.inputs)):
        lines.append(f"  arguments {json.dumps(graph.input_tree)}")
    if graph.output_tree != tree.single(len(graph.outputs)):
        lines.append(f"  results {json.dumps(graph.output_tree)}")
    lines.append(f"  return {', '.join(map(_value, graph.outputs))}".rstrip())
    return "\n".join([*lines, "}", ""])


def parse_module(text: str, tensors: Mapping[str, Tensor] | None = None) -> Module:
    """Read text of `print_module`.

    Args:
        text: Text of any number of graphs.
        tensors: Tensors that the leaves refer to.

    Raises:
        ParseError: The text is not a graph, or a type differs from the inferred one; line and column
            are given, with the line itself.
    """
    return _Parser(text, Module(tensors)).module()


def parse_type(text: str) -> TensorType:
    """Read a type such as `f32[N, 8]` or `i8[4] q(0.5:0)`.

    Raises:
        ParseError: The text is not a type.
    """
    parser = _Parser(text, Module())
    found = parser.type()
    parser.end_of_line()
    return found


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    return json.dumps(text)


def _value(value: Value) -> str:
    return f"%{_name(value.name)}"


def _node(node: Node, locations: bool) -> str:
    results = ", ".join(map(_value, node.outputs))
    line = f"{results} = {node.op}({', '.join(map(_value, node.inputs))})"
    defaults = node.definition.attributes
    # Defaults are compared as text, because True == 1 == 1.0 in Python.
    changed = [
        f"{key} = {format_attribute(item)}"
        for key, item in node.attributes.items()
        if defaults[key] is REQUIRED or format_attribute(item) != format_attribute(plain(defaults[key]))
    ]
    if changed:
        line += f" {{{', '.join(changed)}}}"
    line += " : " + ", ".join(str(value.type) for value in node.outputs)
    if locations and node.location != Location():
        place = node.location
        parts = (place.path, place.source, *((place.place,) if place.place else ()))
        line += f" loc({', '.join(map(_string, parts))})"
    if locations and node.origins != (node.name,):
        line += f" from({', '.join(map(_string, node.origins))})"
    return line


def format_attribute(item: Attribute) -> str:
    """`item` in the text form."""
    if isinstance(item, tuple):
        return "(" + ", ".join(map(format_attribute, item)) + ("," if len(item) == 1 else "") + ")"
    if item is None:
        return "none"
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return _string(item)
    if isinstance(item, int | float):
        return repr(item)
    return f"spec{_string(str(item))}" if isinstance(item, QuantSpec) else f"dim{_string(format_dim(item))}"


class _Parser:
    """Recursive descent over one text; every line is read once."""

    def __init__(self, text: str, module: Module) -> None:
        self.text, self.result = text, module
        self.position = 0
        self.values: dict[str, Value] = {}

    def module(self) -> Module:
        self.skip_lines()
        while self.position < len(self.text):
            self.graph()
            self.skip_lines()
        return self.result

    def graph(self) -> None:
        self.expect("graph")
        self.expect("@")
        name = self.name("the name of a graph")
        self.expect("stage")
        self.expect("=")
        stage = self.checked(lambda: Stage(self.token(_WORD, "a stage")), "one of " + ", ".join(Stage))
        graph = self.checked(lambda: self.result.add(Graph(name, stage)))
        self.values = {}
        self.expect("{")
        self.end_of_line()
        arguments: tree.Tree | None = None
        results: tree.Tree | None = None
        while True:
            self.skip_lines()
            if self.accept("return"):
                outputs = [] if self.at_line_end() else self.several(self.value)
                nesting = tree.single(len(outputs)) if results is None else results
                self.checked(functools.partial(graph.set_outputs, outputs, nesting))
                self.end_of_line()
                self.skip_lines()
                self.expect("}")
                break
            if self.accept("input"):
                self.input(graph)
            elif self.accept("names"):
                graph.input_names = self.several(self.string)
            elif self.accept("bound"):
                symbol = self.token(_WORD, "the name of a symbol")
                graph.bounds[symbol] = (self.integer(), self.integer())
            elif self.accept("arguments"):
                arguments = self.tree()
            elif self.accept("results"):
                results = self.tree()
            elif self.peek() == "%":
                self.node(graph)
            else:
                self.fail("a node, `input`, `names`, `bound`, `arguments`, `results` or `return`")
            self.end_of_line()
        graph.input_tree = tree.single(len(graph.inputs)) if arguments is None else arguments

    def input(self, graph: Graph) -> None:
        name = self.new_name()
        self.expect(":")
        self.values[name] = graph.add_input(name, self.type())

    def node(self, graph: Graph) -> None:
        names = self.several(self.new_name)
        if len(set(names)) != len(names):
            self.fail("a different name for each result")
        self.expect("=")
        self.skip_blanks()
        start = self.position
        op_name = self.token(_WORD, "the name of an operator")
        self.expect("(")
        operands = [] if self.peek() == ")" else self.several(self.value)
        self.expect(")")
        attributes: dict[str, Attribute] = {}
        if self.accept("{"):
            self.several(lambda: self.attribute_item(attributes))
            self.expect("}")
        self.expect(":")
        types = self.several(self.type)
        location = Location()
        origins: tuple[str, ...] = (names[0],)
        if self.accept("loc"):
            self.expect("(")
            path = self.string()
            self.expect(",")
            source = self.string()
            location = Location(path, source, self.string() if self.accept(",") else "")
            self.expect(")")
        if self.accept("from"):
            self.expect("(")
            origins = () if self.peek() == ")" else tuple(self.several(self.string))
            self.expect(")")
        end, self.position = self.position, start  # so that errors about the node point at its operator
        node = self.checked(
            lambda: graph.append(op_name, operands, attributes, name=names[0], location=location, types=None)
        )
        self.declare(graph, node, names, types)
        node.origins = origins
        self.position = end

    def declare(self, graph: Graph, node: Node, names: list[str], types: list[TensorType]) -> None:
        """Give the results of `node` the names and types of the text."""
        if len(names) != len(node.outputs) or len(types) != len(node.outputs):
            raise self.error(
                f"the line has {len(names)} names and {len(types)} types",
                f"{len(node.outputs)} results of {node.op}, each with a type",
            )
        definition = op(node.op)
        own_grid = definition.has(Trait.REQUANTIZES) or definition.has(Trait.LEAF)
        for value, name, declared in zip(node.outputs, names, types, strict=True):
            found = value.type
            same = (found.dtype, found.shape) == (declared.dtype, declared.shape) if own_grid else found == declared
            if not same:
                raise self.error(
                    f"%{name} has the type {declared}", f"{found}, the type that follows from the operands"
                )
            value.type = declared
            self.values[name] = value
        graph.name_results(node, names)

    def type(self) -> TensorType:
        dtype = self.checked(lambda: DType(self.token(_WORD, "an element type")), "one of " + ", ".join(DType))
        self.expect("[")
        start = self.position
        inside = self.token(_SIZES, "sizes")
        self.expect("]")
        end, self.position = self.position, start  # so that errors about a size point at the first
        parts = [part.strip() for part in inside.split(",")] if inside.strip() else []
        shape: tuple[Dim, ...] = self.checked(lambda: tuple(map(parse_dim, parts)))
        self.position = end
        quant = self.quant() if self.accept("q(") else None
        return self.checked(lambda: TensorType(dtype, shape, quant))

    def quant(self) -> QuantParams:
        scales: list[float] = []
        points: list[int] = []
        axis = None
        while not self.accept(")"):
            if self.accept("axis="):
                axis = self.integer()
                continue
            scales.append(float(self.token(_NUMBER, "a scale")))
            self.expect(":")
            points.append(self.integer())
        return self.checked(lambda: QuantParams(tuple(scales), tuple(points), axis))

    def attribute_item(self, known: dict[str, Attribute]) -> None:
        self.skip_blanks()
        start = self.position
        key = self.token(_WORD, "the name of an attribute")
        if key in known:
            self.position = start
            self.fail(f"each attribute once, but {key} is repeated")
        self.expect("=")
        known[key] = self.attribute()

    def attribute(self) -> Attribute:
        if not self.accept("("):
            return self.scalar()
        items: list[Scalar | Dim] = []
        while not self.accept(")"):
            items.append(self.scalar())
            if not self.accept(","):
                self.expect(")")
                break
        return tuple(items)

    def scalar(self) -> Scalar | Dim:
        match self.peek():
            case '"':
                return self.string()
            case "+" | "-" | "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9":
                return self.checked(lambda: _number(self.token(_NUMBER, "a number")))
        word = self.token(_WORD, _VALUE)
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word in ("inf", "nan"):
            return float(word)
        if word == "spec":
            return self.checked(lambda: QuantSpec.parse(self.string()))
        if word == "dim":
            return self.checked(lambda: parse_dim(self.string()))
        return self.fail(_VALUE)

    def tree(self) -> tree.Tree:
        self.skip_blanks()
        data, end = self.checked(lambda: json.JSONDecoder().raw_decode(self.text, self.position), "a tree in JSON")
        found = self.checked(lambda: tree.from_plain(data), "a tree in JSON")
        self.position = end
        return found

    def value(self) -> Value:
        self.expect("%")
        start = self.position
        name = self.name("the name of a value")
        if name not in self.values:
            self.position = start
            self.fail(f"a value that is defined above, but %{name} is not")
        return self.values[name]

    def new_name(self) -> str:
        self.expect("%")
        start = self.position
        name = self.name("the name of a value")
        if name in self.values:
            self.position = start
            self.fail(f"a new name, but %{name} exists")
        return name

    def name(self, what: str) -> str:
        return self.string() if self.peek() == '"' else self.token(_NAME, what)

    def string(self) -> str:
        text = self.token(_STRING, "a string")
        return self.checked(lambda: str(json.loads(text)), "a string as in JSON")

    def integer(self) -> int:
        text = self.token(_NUMBER, "an integer")
        return self.checked(lambda: int(text), "an integer")

    def several(self, item: Callable[[], T]) -> list[T]:
        """`item` once or more, separated by commas."""
        found = [item()]
        while self.accept(","):
            found.append(item())
        return found

    def token(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip_blanks()
        match = pattern.match(self.text, self.position)
        if match is None:
            self.fail(what)
        self.position = match.end()
        return match[0]

    def accept(self, literal: str) -> bool:
        self.skip_blanks()
        if not self.text.startswith(literal, self.position):
            return False
        end = self.position + len(literal)
        if literal[-1].isalnum() and self.text[end : end + 1].isalnum():
            return False  # the beginning of a longer word
        self.position = end
        return True

    def expect(self, literal: str) -> None:
        if not self.accept(literal):
            self.fail(f"`{literal}`")

    def peek(self) -> str:
        self.skip_blanks()
        return self.text[self.position : self.position + 1]

    def at_line_end(self) -> bool:
        return self.peek() in ("\n", "")

    def end_of_line(self) -> None:
        if not self.at_line_end():
            self.fail("the end of the line")

    def skip_blanks(self) -> None:
        match = _BLANK.match(self.text, self.position)
        self.position = cast("re.Match[str]", match).end()

    def skip_lines(self) -> None:
        while self.at_line_end() and self.position < len(self.text):
            self.position += 1

    def checked(self, make: Callable[[], T], expected: str | None = None) -> T:
        """The result of `make`, with its errors reported at the current position."""
        self.skip_blanks()
        start = self.position
        try:
            return make()
        except ParseError as error:
            if error.where is not None and error.where.startswith("line "):
                raise
            self.position = start
            raise self.error(error.found, expected or error.expected) from None
        except (QCompilerError, ValueError, RecursionError) as error:
            self.position = start
            raise self.error(str(error), expected) from None
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
            # The rules of operators assume attributes of the right kinds.
            self.position = start
            raise self.error(f"the text is inconsistent: {type(error).__name__}: {error}", expected) from None

    def fail(self, expected: str) -> NoReturn:
        rest = self.text[self.position : self.position + 20].partition("\n")[0]
        raise self.error(f"{rest!r} was found" if rest else "the line ends", expected)

    def error(self, found: str, expected: str | None) -> ParseError:
        before = self.text[: self.position]
        line = before.count("\n") + 1
        start = before.rfind("\n") + 1
        shown = self.text[start:].partition("\n")[0].strip()
        return ParseError(found, where=f"line {line}, column {self.position - start + 1}: {shown}", expected=expected)


def _number(text: str) -> int | float:
    if any(c in text for c in ".eEn"):
        return float(text)
    return int(text)
