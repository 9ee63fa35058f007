"""Gates on the shape of the code: size of functions, annotations, docstrings.

    python tools/gates.py

Prints one line for each place that breaks a rule and exits 1 if there is one. Long files are named
as places to look at; they break no rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 500
"""A file is one concept; a longer one may be two."""
FUNCTION_LINES = 60
ROOT = Path(__file__).resolve().parent.parent

Function = ast.FunctionDef | ast.AsyncFunctionDef


def problems_of(path: Path) -> Iterator[str]:
    """Yield each place of one source file that breaks a rule."""
    text = path.read_text(encoding="utf-8")
    where = path.relative_to(ROOT)
    tree = ast.parse(text)
    if ast.get_docstring(tree) is None:
        yield f"{where}: no docstring"
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield from _problems_of_function(node, where)


def _problems_of_function(node: Function, where: Path) -> Iterator[str]:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if length > FUNCTION_LINES:
        yield f"{where}:{node.lineno} {node.name}: {length} lines, the limit is {FUNCTION_LINES}"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    if bare or node.returns is None:
        yield f"{where}:{node.lineno} {node.name}: not annotated: {', '.join(bare) or 'return'}"
    for name in bare_random_calls(node):
        if where.name != "randomness.py":
            yield f"{where}:{node.lineno} {node.name}: {name} draws outside randomness.py"


def bare_random_calls(node: ast.AST) -> Iterator[str]:
    """Yield the calls below `node` that draw from a global generator."""
    forbidden = ("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "np.random.")
    for child in ast.walk(node):
        if isinstance(child, ast.Call):
            name = ast.unparse(child.func)
            if name in forbidden[:4] or name.startswith(forbidden[4:]):
                yield name


def main() -> int:
    """Check src, benchmarks, surfaces and tools; return the exit code."""
    folders = ("src", "benchmarks", "surfaces", "tools")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in files:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_LINES:
            print(f"look at {path.relative_to(ROOT)}: {lines} lines, more than {FILE_LINES}")
    problems = [line for path in files for line in problems_of(path)]
    print("\n".join(problems) or f"gates: {len(files)} files, nothing to mend")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
