"""Write the types of the public names: python tools/stub.py.

``src/mapet/__init__.pyi`` re-exports every name of ``mapet.__all__``. A function that takes ``**settings`` is declared
with the flat settings that it accepts, which come from the settings classes in ``SETTINGS``.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from importlib import import_module
from inspect import getsource, isfunction
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator

import mapet
from mapet.config.setting import COMMAS, REPEATED, flat_name, group

STUB = Path(__file__).parents[1] / "src" / "mapet" / "__init__.pyi"
SETTINGS = {  # the settings classes, below mapet.config, whose flat names a function takes
    "pretrain": ("recipe.Recipe", "runtime.Runtime"),
    "resume": ("runtime.Runtime",),
    "finetune": ("finetune.FinetuneRecipe", "runtime.Runtime"),
    "train_vqkd": ("vqkd.VQKDRecipe", "runtime.Runtime"),
    "evaluate": ("evaluate.EvaluateSettings",),
    "embed": ("use.EmbedSettings",),
    "attend": ("use.AttendSettings",),
    "reveal_image": ("use.RevealSettings",),
    "report": ("report.ReportSettings",),
    "neighbours": ("use.NeighboursSettings",),
    "predict": ("use.PredictSettings",),
    "masks": ("use.MasksSettings",),
    "validate": ("validate.ValidateSettings",),
    "robustness": ("validate.RobustnessSettings",),
    "transfer": ("evaluate.EvaluateSettings",),
    "tokenize": ("verbs.TokenizeSettings",),
    "fit_tokenizer": ("verbs.FitTokenizerSettings",),
    "import_tokenizer": ("verbs.ImportTokenizerSettings",),
    "inspect_tokenizer": ("verbs.InspectTokenizerSettings",),
    "pack": ("verbs.PackSettings",),
    "compare": ("compare.CompareSettings", "recipe.Recipe", "runtime.Runtime"),
    "estimate": ("estimate.EstimateSettings", "recipe.Recipe"),
    "benchmark": ("benchmark.BenchmarkSettings", "recipe.Recipe"),
    "segment": ("segmentation.SegmentRecipe", "runtime.Runtime"),
    "segment_probe": ("segmentation.SegmentProbeSettings",),
    "show": ("recipe.Recipe",),
    "quickstart": ("quickstart.QuickstartSettings",),
}
HEADER = '"""Types of the public names. Written by tools/stub.py."""\n\n'


def stub() -> str:
    """The content of the stub."""
    exported, functions = [], []
    for name in sorted(mapet.__all__):
        value = getattr(mapet, name)
        node = _definition(value) if isfunction(value) else None
        if node is not None and node.args.kwarg is not None and name in SETTINGS:
            functions.append(Function(name, value.__module__, node))
        else:
            exported.append(f"from mapet.{mapet._HOMES[name]} import {name} as {name}\n")
    dicts = Dicts()
    declared = [one.declared(dicts) for one in functions]
    imports = {line for one in functions for line in one.imports()} | dicts.imports
    text = HEADER + "".join([*sorted(imports), *exported, "\n", *dicts.found.values(), "\n", *declared])
    text += f"\n__all__ = {sorted(mapet.__all__)!r}\n__version__: str\n"
    return _formatted(text)


class Dicts:
    """The flat settings of settings classes as ``TypedDict`` classes, each written once."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.imports = {"from typing import Literal, TypedDict, Unpack\n"}

    def add(self, name: str, kinds: tuple[type, ...], explicit: set[str]) -> str:
        """The class with the settings of ``kinds`` but for the parameters ``explicit`` of the function ``name``."""
        seen = set(explicit)
        bases = [base for kind in kinds for base in self._groups(kind, name, seen)]
        title = f"_{_camel(name)}Settings"
        self.found[title] = f'class {title}({", ".join(bases)}, total=False):\n    """Settings of ``{name}``."""\n\n'
        return title

    def _groups(self, kind: type, name: str, seen: set[str]) -> Iterator[str]:
        plain = {flat_name(one): self._text(one.type) for one in fields(kind) if group(one) is None}
        left = {setting: text for setting, text in plain.items() if setting not in seen}
        whole = len(left) == len(plain)
        seen |= set(plain)
        title = f"_{kind.__name__.removesuffix('Settings')}" + ("" if whole else f"Of{_camel(name)}")
        if left and title not in self.found:
            lines = "".join(f"    {setting}: {text}\n" for setting, text in left.items())
            self.found[title] = (
                f'class {title}(TypedDict, total=False):\n    """Settings of ``{kind.__name__}``."""\n\n{lines}\n'
            )
        if left:
            yield title
        for one in fields(kind):
            if inner := group(one):
                yield from self._groups(inner, name, seen)

    def _text(self, kind: Any) -> str:
        """A type as source text."""
        origin, parts = get_origin(kind), get_args(kind)
        if origin is Annotated:
            if any(extra in (COMMAS, REPEATED) for extra in parts[1:]):
                self.imports.add("from collections.abc import Sequence\n")
                one = self._text(get_args(parts[0])[0])
                return " | ".join(dict.fromkeys(("str", one, f"Sequence[{one}]")))
            if any(isinstance(extra, BeforeValidator) for extra in parts[1:]):
                self.imports.add("from os import PathLike\n")
                return "str | PathLike[str]"
            return self._text(parts[0])
        if origin in (Union, UnionType):
            return " | ".join(dict.fromkeys(map(self._text, parts)))
        if origin is Literal:
            return f"Literal[{', '.join(map(repr, parts))}]"
        if origin is tuple:
            return f"tuple[{', '.join('...' if part is ... else self._text(part) for part in parts)}]"
        return "None" if kind is NoneType else kind.__name__


class Function:
    """A function whose ``**settings`` are declared."""

    def __init__(self, name: str, module: str, node: ast.FunctionDef) -> None:
        self.name, self.module, self.node = name, module, node
        arguments = [*node.args.args, *node.args.kwonlyargs]
        self.explicit = {one.arg for one in arguments}
        self.annotations = [one.annotation for one in arguments if one.annotation] + [
            node.returns or ast.Constant(None)
        ]

    def declared(self, dicts: Dicts) -> str:
        """``def name(…, **settings: Unpack[…]) -> …: ...``"""
        kinds = tuple(_class(path) for path in SETTINGS[self.name])
        title = dicts.add(self.name, kinds, self.explicit)
        arguments = self.node.args
        assert arguments.kwarg is not None
        arguments.kwarg.annotation = ast.parse(f"Unpack[{title}]", mode="eval").body
        arguments.defaults = [_default(one) for one in arguments.defaults]
        arguments.kw_defaults = [one and _default(one) for one in arguments.kw_defaults]
        self.node.body = [ast.Expr(ast.Constant(...))]
        return ast.unparse(self.node) + "\n\n"

    def imports(self) -> Iterator[str]:
        """What its annotations need."""
        names = {node.id for one in self.annotations for node in ast.walk(one) if isinstance(node, ast.Name)}
        source = ast.parse(Path(sys.modules[self.module].__file__ or "").read_text())
        for node in ast.walk(source):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if (alias.asname or alias.name) in names and not _public(node.module, alias):
                    yield f"from {node.module} import {alias.name}{f' as {alias.asname}' if alias.asname else ''}\n"
        own = {node.name for node in source.body if isinstance(node, ast.ClassDef)} & names
        yield from (f"from {self.module} import {name}\n" for name in own if name not in mapet.__all__)


class _Unquoted(ast.NodeTransformer):
    """Annotations without quotes."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if ast.unparse(node.value) != "Literal":
            self.generic_visit(node)
        return node


def _definition(function: Any) -> ast.FunctionDef | None:
    """The function's source, its annotations without quotes."""
    node = ast.parse(getsource(function)).body[0]
    if not isinstance(node, ast.FunctionDef):
        return None
    for one in [*node.args.args, *node.args.kwonlyargs]:
        one.annotation = one.annotation and _Unquoted().visit(one.annotation)
    node.returns = node.returns and _Unquoted().visit(node.returns)
    node.decorator_list = []
    return node


def _default(node: ast.expr) -> ast.expr:
    """A default that the stub may show."""
    return (
        node
        if all(isinstance(part, ast.Constant | ast.Tuple | ast.Load) for part in ast.walk(node))
        else ast.Constant(...)
    )


def _public(module: str | None, alias: ast.alias) -> bool:
    """Whether what is imported is public under the same name."""
    name = alias.asname or alias.name
    return name in mapet.__all__ and getattr(import_module(module or ""), alias.name) is getattr(mapet, name)


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    kind: type = getattr(import_module(f"mapet.config.{module}"), name)
    return kind


def _formatted(text: str) -> str:
    """As ruff writes it."""
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    ruff = [sys.executable, "-m", "ruff"]
    fixed = run(
        [*ruff, "check", "--fix", "--quiet", "--select=I,F401", f"--stdin-filename={STUB}", "-"], input=text
    ).stdout
    return run([*ruff, "format", f"--stdin-filename={STUB}", "-"], input=fixed).stdout


if __name__ == "__main__":
    STUB.write_text(stub())
