"""Small configs and what they mean: for our reader, and for the reference's where it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any


@dataclass(frozen=True)
class Case:
    """Files, the first of which is read, and the values that come out.

    Args:
        name: What is shown.
        files: Name -> text.
        values: What they mean.
        options: Overrides.
        added: Paths that the overrides add.
    """

    name: str
    files: Mapping[str, str]
    values: Mapping[str, Any]
    options: tuple[str, ...] = ()
    added: tuple[str, ...] = field(default=())

    def write(self, folder: Path) -> Path:
        """Write the files and return the first one's path."""
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(dedent(text), encoding="utf-8")
        return folder / next(iter(self.files))


BASE = """
    size = 8
    model = dict(type="A", head=dict(type="H", n=2), stem=None)
    steps = [dict(type="Crop", size=size), dict(type="Flip", p=0.5)]
"""
BASE_VALUES: dict[str, Any] = {
    "size": 8,
    "model": {"type": "A", "head": {"type": "H", "n": 2}, "stem": None},
    "steps": [{"type": "Crop", "size": 8}, {"type": "Flip", "p": 0.5}],
}


def one(name: str, text: str, **values: Any) -> Case:
    """Return a case of one Python file."""
    return Case(name, {"config.py": text}, values)


def child(name: str, text: str, **values: Any) -> Case:
    """Return a case of a Python file over `BASE`, with the values in which it differs."""
    files = {"config.py": "_base_ = './base.py'\n" + dedent(text), "base.py": BASE}
    return Case(name, files, {**BASE_VALUES, **values})


LANGUAGE = (
    one(
        "literals",
        """
        '''About this file.'''
        a, (b, c) = 1, (-2.5, "x" "y")  # a comment
        d = e = [None, True, (3,), {"k": 1, 2: "two"}]
        f: int = 5
        __hidden = 3
        """,
        a=1,
        b=-2.5,
        c="xy",
        d=[None, True, (3,), {"k": 1, 2: "two"}],
        e=[None, True, (3,), {"k": 1, 2: "two"}],
        f=5,
    ),
    one(
        "arithmetic",
        """
        a = 1.5e-4 * 4096 / 256
        b = 2**10 - 7 // 2 % 2
        c = [0] * 2 + [1]
        d = ("ab" + "c") * 2
        e = 10 ** -2
        f = (1, 2) + (3,)
        n = 3
        n += 1
        c += (2, 3)
        g = -n
        h = not n
        """,
        a=1.5e-4 * 4096 / 256,
        b=1023,
        c=[0, 0, 1, 2, 3],
        d="abcabc",
        e=10**-2,
        f=(1, 2, 3),
        n=4,
        g=-4,
        h=False,
    ),
    one(
        "comparisons and conditions",
        """
        a = 1 < 2 <= 2 != 3
        b = "x" in dict(x=1) and 3 not in [1, 2]
        c = None is None or missing
        d = "big" if 10 > 5 else "small"
        if not a:
            e = 1
        elif b:
            e = 2
        else:
            e = 3
        """,
        a=True,
        b=True,
        c=True,
        d="big",
        e=2,
    ),
    one(
        "subscripts",
        """
        a = [0, 1, 2, 3, 4, 5]
        b = a[1:5:2]
        c = a[-1]
        d = dict(x=[dict(y=(7, 8))])["x"][0]["y"][1]
        e = "word"[::-1]
        a[0] = 9
        a[4:] = [7]
        del a[1], d
        f = dict(k=1, l=2)
        f["m"] = f["k"]
        del f["k"]
        """,
        a=[9, 2, 3, 7],
        b=[1, 3],
        c=5,
        e="drow",
        f={"l": 2, "m": 1},
    ),
    one(
        "unpacking",
        """
        a = dict(x=1, y=2)
        b = dict(**a, z=3)
        c = {**a, "x": 5}
        d = [*[1, 2], *(3,)]
        e = dict(a, y=4)
        f = dict([("k", 1)])
        g = max(*d)
        """,
        a={"x": 1, "y": 2},
        b={"x": 1, "y": 2, "z": 3},
        c={"x": 5, "y": 2},
        d=[1, 2, 3],
        e={"x": 1, "y": 4},
        f={"k": 1},
        g=3,
    ),
    one(
        "comprehensions and loops",
        """
        mean = [0.485, 0.456]
        a = [round(x * 255, 2) for x in mean]
        b = {k: v for k, v in zip("ab", range(2)) if v}
        c = [i * j for i in range(3) for j in range(i)]
        d = []
        for i, x in enumerate(["p", "q"]):
            d.append((i, x))
        e = tuple(x for x in sorted([3, 1, 2], reverse=True))
        f = sum([1, 2.5])
        """,
        mean=[0.485, 0.456],
        a=[round(0.485 * 255, 2), round(0.456 * 255, 2)],
        b={"b": 1},
        c=[0, 0, 2],
        d=[(0, "p"), (1, "q")],
        i=1,
        x="q",
        e=(3, 2, 1),
        f=3.5,
    ),
    one(
        "functions and methods",
        """
        a = [int("3"), float("1e-3"), len("abc"), str(1.5), bool([]), abs(-2), min([4, 2])]
        b = [1]
        b.extend((2, 3))
        b.insert(0, b.pop())
        c = dict(k=dict(l=1))
        c.update(k=dict(m=2), n=3)
        d = list(c.items()) + list(c.keys())
        e = c.copy()
        g = e.pop("n")
        h = e.get("none", 4)
        j = e.setdefault("o", 5)
        """,
        a=[3, 1e-3, 3, "1.5", False, 2, 2],
        b=[3, 1, 2],
        c={"k": {"m": 2}, "n": 3},
        d=[("k", {"m": 2}), ("n", 3), "k", "n"],
        e={"k": {"m": 2}, "o": 5},
        g=3,
        h=4,
        j=5,
    ),
    one(
        "texts",
        """
        n, rate = 8, 1.5e-4
        a = f"{n}xb{n * 4:03d}-{rate:.1e}-{'x'!r}"
        b = "{}/{}".format("data", n)
        c = "{0}{0}{name:>4}".format(1, name="m")
        d = "%d of %s" % (n, "N")
        e = "{{}}".format()
        """,
        n=8,
        rate=1.5e-4,
        a="8xb032-1.5e-04-'x'",
        b="data/8",
        c="11   m",
        d="8 of N",
        e="{}",
    ),
    one(
        "one list under two names",
        """
        a = [1]
        b = dict(x=a)
        a.append(2)
        a += [3]
        c = a
        c = c + [4]
        """,
        a=[1, 2, 3],
        b={"x": [1, 2, 3]},
        c=[1, 2, 3, 4],
    ),
    one("names of functions", "max = 3\nlist = [max]\n", max=3, list=[3]),
)

BASES = (
    child(
        "groups merge, lists do not",
        "model = dict(head=dict(n=3), depth=1)\nsteps = [dict(type='Flip')]",
        model={"type": "A", "head": {"type": "H", "n": 3}, "stem": None, "depth": 1},
        steps=[{"type": "Flip"}],
    ),
    child(
        "_delete_ replaces",
        "model = dict(head=dict(_delete_=True, m=3), neck=dict(_delete_=True, k=1))",
        model={
            "type": "A",
            "head": {"m": 3},
            "stem": None,
            # There is nothing to delete, and the reference leaves the key.
            "neck": {"_delete_": True, "k": 1},
        },
    ),
    child(
        "_delete_=False merges",
        "model = dict(head=dict(_delete_=False, m=3))",
        model={"type": "A", "head": {"type": "H", "n": 2, "m": 3}, "stem": None},
    ),
    child(
        "a value replaces a group",
        "model = dict(head=4, stem=dict(_delete_=True, a=1))",
        model={"type": "A", "head": 4, "stem": {"a": 1}},
    ),
    child(
        "names of the base",
        """
        double = _base_.size * 2
        first = _base_.steps[0]
        head = _base_.model.head
        kind = _base_["model"]["type"]
        """,
        double=16,
        first={"type": "Crop", "size": 8},
        head={"type": "H", "n": 2},
        kind="A",
    ),
    child(
        "the base changes",
        """
        _base_.model.update(dict(head=dict(m=1)))
        _base_.steps.insert(1, dict(type="Grey"))
        _base_.model.stem = "conv"
        _base_.size += 1
        gone = _base_.model.pop("missing")
        model = dict(n=1)
        """,
        model={"type": "A", "head": {"type": "H", "n": 2, "m": 1}, "stem": "conv", "n": 1},
        steps=[{"type": "Crop", "size": 8}, {"type": "Grey"}, {"type": "Flip", "p": 0.5}],
        size=9,
        gone=None,
    ),
    child(
        "templates of the base",
        """
        wide = {{_base_.size}}  # not {{_base_.none}}
        model = dict(head=dict(n={{ _base_.model.head.n }}, of=[{{_base_.size}}, 1]))
        loader = dict(steps={{_base_.steps}})
        """,
        wide=8,
        model={"type": "A", "head": {"type": "H", "n": 2, "of": [8, 1]}, "stem": None},
        loader={"steps": BASE_VALUES["steps"]},
    ),
    Case(
        "several bases, one of which has one",
        {
            "a/config.py": "_base_ = ['../b.py', '../c/c.py']\nx = dict(p=_base_.y.q)",
            "b.py": "x = dict(o=1)",
            "c/c.py": "_base_ = 'd.py'\ny = dict(r=2)",
            "c/d.py": "y = dict(q=1)\nz = 3",
        },
        {"x": {"o": 1, "p": 1}, "y": {"q": 1, "r": 2}, "z": 3},
    ),
    Case(
        "no base in common but a name",
        {"config.py": "_base_ = 'a.py'\nb = dict(x=1)", "a.py": "a = {1: dict(b=2)}"},
        {"a": {1: {"b": 2}}, "b": {"x": 1}},
    ),
    Case(
        "the file's name",
        {
            "run-1.py": """
                name = '{{ fileBasename }}'
                work_dir = 'work_dirs/{{fileBasenameNoExtension}}'
                suffix = '{{ fileExtname }}'
            """
        },
        {"name": "run-1.py", "work_dir": "work_dirs/run-1", "suffix": ".py"},
    ),
    Case(
        "the environment",
        {
            "config.py": """
                root = '{{$QUADRIGA_TEST_ROOT:/none}}/train'
                other = '{{ $QUADRIGA_TEST_UNSET:/none }}/train'
                n = {{'$QUADRIGA_TEST_UNSET:80'}} + 1
            """
        },
        {"root": "/data/train", "other": "/none/train", "n": 81},
    ),
    Case(
        "JSON",
        {
            "config.json": '{"_base_": "base.py", "model": {"head": {"n": {{_base_.size}} }}}',
            "base.py": BASE,
        },
        {**BASE_VALUES, "model": {"type": "A", "head": {"type": "H", "n": 8}, "stem": None}},
    ),
    Case(
        "YAML",
        {
            "config.yaml": "_base_: [base.py]\nmodel:\n  head: {n: 3}\n  parts: [1, 2.5, no, ~]\n",
            "base.py": BASE,
        },
        {
            **BASE_VALUES,
            "model": {
                "type": "A",
                "head": {"type": "H", "n": 3},
                "stem": None,
                "parts": [1, 2.5, False, None],
            },
        },
    ),
)

IMPORTS = (
    Case(
        "read_base through several files",
        {
            "run/config.py": """
                from mmengine.config import read_base
                with read_base():
                    from ..parts.model import *
                    from ..parts.model import model as other
                    from .schedule import lr
                from mmlib.heads import Deep
                model.head.type = Deep
                other["depth"] = 2
                lr = lr / 2
            """,
            "parts/model.py": """
                from mmengine.config import read_base
                with read_base():
                    from .head import head
                width = 4
                model = dict(width=width, head=head)
                model.update(head=dict(n=3))
            """,
            "parts/head.py": "from mmlib.heads import Flat\nhead = dict(type=Flat, sizes=[Flat])",
            "run/schedule.py": "lr = 0.5\nsteps = [1]",
        },
        {
            "head": {"type": "Flat", "sizes": ["mmlib.heads.Flat"]},
            "width": 4,
            "model": {"width": 4, "head": {"n": 3, "type": "Deep"}, "depth": 2},
            "other": {"width": 4, "head": {"n": 3, "type": "Deep"}, "depth": 2},
            "lr": 0.25,
        },
    ),
    Case(
        "read_base and classes",
        {
            "config.py": """
                from mmengine.config import read_base
                from mmlib.models import Model as M, Head
                import torch.nn
                import mmlib.optim as optim

                with read_base():
                    from .base import *
                    from .parts.loader import loader, batch as size_of_batch

                model.update(dict(type=M, head=dict(type=Head), act=torch.nn.ReLU))
                model.depth = 12
                loader.merge(dict(sampler=dict(_delete_=True, b=2)))
                optimizer = dict(type=optim.AdamW, lr=size_of_batch / 4)
            """,
            "base.py": """
                from mmlib.models import Old
                model = dict(type=Old, head=dict(n=1))
            """,
            "parts/loader.py": "batch = 2\nloader = dict(n=1, sampler=dict(a=1))\n",
        },
        {
            "model": {
                "type": "Model",
                "head": {"type": "Head", "n": 1},
                "act": "torch.nn.ReLU",
                "depth": 12,
            },
            "loader": {"n": 1, "sampler": {"b": 2}},
            "size_of_batch": 2,
            "optimizer": {"type": "AdamW", "lr": 0.5},
        },
    ),
)


def overridden(option: str, *added: str, **values: Any) -> Case:
    """Return a case of `BASE` with one option."""
    names = (option,) if isinstance(option, str) else option
    return Case(option, {"config.py": BASE}, {**BASE_VALUES, **values}, names, added)


_CROP, _FLIP = BASE_VALUES["steps"]
OPTIONS = (
    overridden("size=3", size=3),
    overridden("size=-2.5e-3", size=-2.5e-3),
    overridden("size=TRUE", size=True),
    overridden("size=None", size=None),
    overridden("size=none", size="none"),
    overridden("size=", size=""),
    overridden("size='a b'", size="ab"),
    overridden("size=a=b", size="a=b"),
    overridden("size=1,x,2.0", size=[1, "x", 2.0]),
    overridden("size=1,", size=[1]),
    overridden("size=[]", size=[]),
    overridden("size=()", size=()),
    overridden("size=(4,)", size=(4,)),
    overridden("size=[(a,b),(c,d)]", size=[("a", "b"), ("c", "d")]),
    overridden('size="[(1, 2), [true, None]]"', size=[(1, 2), [True, None]]),
    overridden("model.head.n=5", model={"type": "A", "head": {"type": "H", "n": 5}, "stem": None}),
    overridden("steps.1.p=0", steps=[_CROP, {"type": "Flip", "p": 0}]),
    overridden(
        "steps.0.ratio=(1,2)",
        "steps.0.ratio",
        steps=[{**_CROP, "ratio": (1, 2)}, _FLIP],
    ),
    overridden("resume=true", "resume", resume=True),
    overridden("randomness.seed=0", "randomness.seed", randomness={"seed": 0}),
    overridden("model=5", model=5),
)

CASES = (*LANGUAGE, *BASES, *IMPORTS, *OPTIONS)
ENVIRONMENT = {"QUADRIGA_TEST_ROOT": "/data"}
