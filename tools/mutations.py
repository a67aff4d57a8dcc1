"""One-token changes of a Python source: comparisons, arithmetic, constants, conditions, arguments and statements."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

SYMBOLS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
NOT_RUN = ("TYPE_CHECKING", "Protocol")  # blocks under `if` and classes of that name


@dataclass(frozen=True)
class Mutant:
    """A source with one change, which replaces the text ``before`` of line ``line`` by ``after``."""

    line: int
    before: str
    after: str
    source: bytes


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a source that still parse and differ from it, in the sequence of the source."""
    starts = [0]
    for text in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(text))
    found: dict[bytes, Mutant] = {}
    for begin, end, text in _edits(ast.parse(source), source, starts):
        changed = source[:begin] + text.encode() + source[end:]
        line = source[:begin].count(b"\n") + 1
        if changed != source and changed not in found and _parses(changed):
            old, new = (whole.splitlines()[line - 1].decode().strip() for whole in (source, changed))
            found[changed] = Mutant(line, old, new, changed)
    return sorted(found.values(), key=lambda one: (one.line, one.after))


def _parses(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _edits(tree: ast.AST, source: bytes, starts: list[int]) -> Iterator[tuple[int, int, str]]:
    """(begin, end, new text) of each change, in bytes of the source."""

    def span(node: ast.AST) -> tuple[int, int]:
        return (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )

    for node in _run(tree):
        for operator, left, right in _operators(node):
            yield from _operator(operator, span(left)[1], span(right)[0], source)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield span(node)[0], span(node.operand)[0], ""
        elif isinstance(node, ast.Constant) and (text := _other(node.value)):
            yield *span(node), text
        elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.UnaryOp | ast.Compare):
            begin, end = span(node.test)
            yield begin, end, f"not ({source[begin:end].decode()})"
        elif isinstance(node, ast.Call):
            yield from _swapped(node, span, source)
        if _removable(node):
            yield *span(node), "pass"


def _operators(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, ast.AST]]:
    """Each operator of the node with its left and its right side."""
    if isinstance(node, ast.Compare):
        yield from zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False)
    elif isinstance(node, ast.BinOp):
        yield node.op, node.left, node.right
    elif isinstance(node, ast.AugAssign):
        yield node.op, node.target, node.value
    elif isinstance(node, ast.BoolOp):
        yield from ((node.op, left, right) for left, right in zip(node.values, node.values[1:], strict=False))


def _operator(operator: ast.AST, begin: int, end: int, source: bytes) -> Iterator[tuple[int, int, str]]:
    """The change of the one operator between two operands; brackets and line breaks around it stay."""
    if type(operator) in SYMBOLS:
        old, new = SYMBOLS[type(operator)]
        at = source.find(old.encode(), begin, end)
        if at >= 0:
            yield at, at + len(old), new


def _other(value: object) -> str | None:
    """Another constant: True for False, n + 1, twice a float; None for all else."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    return repr(value * 2 if value else 1.0) if isinstance(value, float) else None


def _swapped(node: ast.Call, span, source: bytes) -> Iterator[tuple[int, int, str]]:
    """The first two positional arguments in the other order."""
    first = node.args[:2]
    symmetric = isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
    if len(first) == 2 and not symmetric and not any(isinstance(one, ast.Starred) for one in first):
        (begin, middle), (other, end) = map(span, first)
        yield begin, end, (source[other:end] + source[middle:other] + source[begin:middle]).decode()


def _removable(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        return not any(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete)


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that do something: no annotations, texts of errors, format strings, checks of the program itself."""
    if isinstance(node, ast.Assert) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    name = getattr(node, "test", None) if isinstance(node, ast.If) else None
    bases = node.bases if isinstance(node, ast.ClassDef) else [name]
    if any(isinstance(base, ast.Name) and base.id in NOT_RUN for base in bases):
        return
    yield node
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.ImportFrom | ast.Import):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _run(child)
