"""What a config must not have or do ends in one line with the file, the line and the remedy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mmselfsup_configs import BASE, Case

from errors import refuses
from quadriga.surfaces.mmselfsup.config import apply_options, dump_config, read_config

SECONDS = 5
"""Of the slowest refusal, on a busy machine; without the bounds they take minutes or memory."""

EXECUTED = {
    "import os": "imported",
    "from os import system": "imported",
    "import os.path as p": "imported",
    "_base_ = []\nimport os": "imported",
    "x = __import__('os')": "called",
    "x = open('/etc/passwd')": "called",
    "x = eval('1')": "called",
    "x = getattr(dict(), 'k')": "called",
    "x = ().__class__": "__class__",
    "x = dict.__subclasses__()": "dict",
    "x = ''.join.__self__": ".join",
    "x = 'a'.upper()": "upper",
    "x = dict(a=1)\ny = x.__class__": "__class__",
    "x = dict(a=1)\ny = x.__class__.__mro__": "__class__",
    "x = dict(a=1)\nx.__class__ = 2": "__class__",
    "x = [1].sort()": "sort",
    "x = '{0.__class__}'.format(1)": "0.__class__",
    "x = '{a[0]}'.format(a=[1])": "a[0]",
    "x = f'{[1]}'": "list",
    "x = round": "function",
    "x = (lambda: 1)()": "called",
    "x = lambda: 1": "lambda",
    "def f(): pass": "function",
    "class A: pass": "class",
    "while True: pass": "for",
    "try:\n    x = 1\nfinally:\n    y = 2": "try",
    "with open('x') as f:\n    y = 1": "read_base",
    "x = {1, 2}": "list",
    "x = {i for i in [1]}": "list",
    "x = (y := 1)": "assignment",
    "x = b'bytes'": "bytes",
    "x = 1j": "complex",
    "x = ...": "ellipsis",
    "x = 1 | 2": "write",
    "x = 1 << 9": "write",
    "x = ~1": "sign",
    "raise ValueError": "Raise",
    "assert True": "Assert",
    "global x": "Global",
    "x = yield": "yield",
    "for x in [1]:\n    break": "Break",
    "from mmlib import A\nx = A(1)": "called",
    "from mmlib import A\nx = A.__class__": "__class__",
    "from mmlib import *": "read_base",
    "from .a import b": "read_base",
}
WRONG = {
    "x = missing": "missing",
    "size = 1\nx = sise": "size",
    "x = dict(abc=1)['abd']": "abc",
    "x = [1][4]": "range",
    "x = 1 / 0": "zero",
    "x = 2.0 ** 5000": "range",
    "x = (-1) ** 0.5": "complex",
    "x = '1' + 2": "int",
    "x = 1 < 'a'": "int",
    "x = dict(1)": "elements",
    "x = round()": "round",
    "x = dict().get(1, 2, 3)": "get",
    "x = {[1]: 2}": "list",
    "x = dict(a=1, **dict(a=2))": "a",
    "x = dict(a=1, a=2)": "twice",
    "x, y = [1]": "names",
    "for x in 5: y = 1": "elements",
    "del x": "x",
    "x = (1, 2)\nx[0] = 3": "tuple",
    "x = (1": "Python",
    "x = 1\n_base_ += []": "group",
    "_base_ = 'a.py'\n_base_ = 'b.py'": "twice",
    "if True:\n    _base_ = 'a.py'": "_base_",
    "_base_ = 3": "path",
    "_base_ = open('x')": "called",
    "_base_ = 'nowhere.py'": "nowhere.py",
    "_base_ = 'gone/x.py'": "folder",
    "_base_ = 'config.py'": "itself",
    "_base_ = 'lib::a/b.py'": "lib",
    "_base_ = 'lib::a/b.py'\nwith read_base():\n    from .a import *": "inherit",
    "with read_base():\n    from .nowhere import *": "nowhere.py",
    "with read_base():\n    x = 1": "read_base",
    "x = {{_base_.a}}": "a",
    "x = '{{$QUADRIGA_TEST_UNSET:}}'": "QUADRIGA_TEST_UNSET",
    "filename = 'x'": "filename",
}
HUGE = {
    "x = 9 ** 9 ** 9": "bits",
    "x = 10 ** 400": "bits",
    "x = 2 ** -(9 ** 30)": "bits",
    "x = 0x" + "f" * 100: "bits",
    "x = " + "9" * 5000: "digits",
    "x = int('9' * 5000)": "characters",
    "x = round(5, -10 ** 9)": "bounds",
    "x = [0] * 10 ** 9": "operations",
    "x = 'a' * 10 ** 9": "characters",
    "x = f'{1:999999999}'": "999999999",
    "x = '{:999999999}'.format(1)": "999999999",
    "x = '%999999999d' % 1": "text",
    "x = '%*d' % (999999999, 1)": "text",
    "x = list(range(10 ** 12))": "operations",
    "x = [1]\nfor i in x:\n    x.append(1)\nfor i in range(999):\n    x += x": "operations",
    "x = 'a'\nfor i in range(99):\n    x += x": "characters",
    "x = [i for i in range(9999) for j in range(9999)]": "operations",
    "x = 0\nfor i in range(900000):\n    x = i": "operations",
    "x = [0, 0]\nfor i in range(60):\n    x = [x, x]": "50",
    "x = [0, 0]\nfor i in range(40):\n    x = [x, x]": "operations",
    "x = (0, 0)\nfor i in range(40):\n    x = (x, x)\ny = {x: 1}": "operations",
    "x, y = [0], [0]\nfor i in range(40):\n    x, y = [x, x], [y, y]\nz = x == y": "operations",
    "x = dict(" + "".join(f"a{i}=1, " for i in range(9999)) + ")['" + "a" * 9999 + "']": "key",
    "x = []\nx.append(x)": "50",
    "x = []\nx.append(x)\ny = x == x": "operations",
    "x = dict()\nx['a'] = x": "50",
    "x = []\nfor i in range(200):\n    x = [x]": "50",
    "x = []\nfor i in range(99999):\n    x = [x]\ny = x == x": "operations",
    "x = " + "[" * 150 + "]" * 150: "levels",
    "x = " + "[" * 5000 + "]" * 5000: "nested",
    "x = " + "-" * 150 + "1": "levels",
    "x = " + "1 + " * 300 + "1": "levels",
    "x = " + "1 + " * 50000 + "1": "nested",
    "x = " + "dict(a=" * 150 + "1" + ")" * 150: "levels",
    "x = a" + ".a" * 5000: "nested",
    "x = 1\nif x < 1: x = 2\n" + "elif x < 1: x = 3\n" * 900: "nested",
    "x = [1]\n" * 33000: "KiB",
    "x = 1\n" + "if x:\n" + "".join(" " * i + "if x:\n" for i in range(1, 99)): "Python",
    "x = '" + "{{$A:" * 21000 + "'": "characters",
    "x = {{_base_.a}}, " * 1001: "templates",
}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [*EXECUTED.items(), *WRONG.items(), *HUGE.items()],
    ids=lambda text: text[:40].replace("\n", " "),
)
def test_a_config_is_refused_in_one_line(text: str, fragment: str, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    begin = time.process_time()
    with refuses(path) as caught:
        dump_config(read_config(path))
    assert time.process_time() - begin < SECONDS
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "fragment"),
    [
        ("config.py", b"\xef\xbb\xbfx = 1", ":1: "),
        ("config.py", "x = 1".encode("utf-16"), ":1: "),
        ("config.py", "x = 1\ny = 'é'".encode("latin-1"), ":2: "),
        ("config.py", b"x = 1\n\x00", "null"),
        ("config.txt", b"x = 1", ".yaml"),
        ("config.json", b"[1]", "keys"),
        ("config.json", b'{"a": 1,\n}', ":2: "),
        ("config.json", b"[" * 9999, "nested"),
        ("config.json", b'{"a": ' * 60 + b"1" + b"}" * 60, "50"),
        ("config.json", b'{"a": ' + b"9" * 100 + b"}", "bits"),
        ("config.yaml", b"a: [1\nb: 2", ":2: "),
        ("config.yaml", b"a: &x [1]\nb: [*x, *x]", ":2: "),
        ("config.yaml", b"a: !!python/object/apply:os.system [ls]", ":1: "),
        ("config.yaml", b"a: 2020-01-01", "date"),
        ("config.yaml", b"a: {? [1] : 2}", ":1: "),
        ("config.yaml", b"1: 2", "keys"),
        ("config.yaml", b"[" * 3000, "nested"),
        ("config.yaml", b"a: x {{_base_.b}}", "b"),
    ],
)
def test_a_file_that_is_no_config(name: str, data: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with refuses(tmp_path / name) as caught:
        read_config(tmp_path / name)
    assert fragment in str(caught.value)


def test_a_missing_config_has_a_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "mae_vit-base.py").touch()
    with refuses("mae_vit-base.py"):
        read_config(tmp_path / "mae_vit-bse.py")
    with refuses("config.py"):
        (tmp_path / "config.py").mkdir()
        read_config(tmp_path / "config.py")


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("_base_ = ['base.py', 'other.py']", 1, "size"),
        ("_base_ = 'base.py'\nsize = dict(a=1)", 2, "_delete_=True"),
        ("_base_ = 'base.py'\n\nmodel = dict(head=dict(n=dict(a=1)))", 3, "model.head.n"),
        ("_base_ = 'base.py'\nx = _base_.modle", 2, "model"),
        ("_base_ = 'base.py'\nx = 1\ny = {{_base_.modle}}", 3, "model"),
        ("_base_ = 'base.py'\nx = {{_base_.size}} * 2", 2, "operator"),
        ("_base_ = 'base.py'\nx = 1 if {{_base_.size}} else 2", 2, "_base_.size"),
        ("_base_ = 'base.py'\nx = {{_base_.size}} == 8", 2, "_base_.size"),
        ("_base_ = 'base.py'\nx = 'a{{_base_.size}}'", 2, "quotes"),
        ('_base_ = "base.py"\nx = "a" "{{_base_.size}}"', 2, "quotes"),
        ("_base_ = 'base.py'\nx = { {{_base_.size}}: 1 }", 2, "type"),
        ("_base_ = 'bose.py'", 1, "base.py"),
        ("with read_base():\n    from .base import siz", 2, "size"),
        (
            "x = 1\nwith read_base():\n    from .other import *\n    from .old import *",
            1,
            "inherit",
        ),
    ],
)
def test_what_bases_contradict(text: str, line: int, fragment: str, tmp_path: Path) -> None:
    files = {
        "config.py": text,
        "base.py": BASE,
        "other.py": "size = 3",
        "old.py": "_base_ = 'base.py'",
    }
    path = Case("", files, {}).write(tmp_path)
    with refuses() as caught:
        read_config(path)
    assert f".py:{line}: " in str(caught.value)
    assert fragment in str(caught.value)


def test_two_files_that_inherit_from_each_other(tmp_path: Path) -> None:
    files = {"a.py": "_base_ = 'b.json'", "b.json": '{"_base_": "./a.py"}'}
    with refuses("a.py", "itself"):
        read_config(Case("", files, {}).write(tmp_path))


def test_bases_that_double(tmp_path: Path) -> None:
    files = {f"{i}.py": f"_base_ = ['{i + 1}.py', '{i + 1}.py']" for i in range(30)}
    with refuses("200"):
        read_config(Case("", {**files, "30.py": ""}, {}).write(tmp_path))


@pytest.mark.parametrize(
    ("option", "fragment"),
    [
        ("size", "key=value"),
        ("=3", "key=value"),
        ("model..n=3", "key=value"),
        ("modle.head.n=3", "model.head.n"),
        ("model.haed.n=3", "model.head.n"),
        ("size.a=3", "size"),
        ("model.stem.a=3", "model.stem"),
        ("steps.2.p=3", "steps.1"),
        ("steps.-1.p=3", "list"),
        ("steps.p=3", "list"),
        ("steps.99999999999999999999.p=3", "list"),
        ("size=[1", "close"),
        ("size=1)", "close"),
        ("size=[(1])", "close"),
        ("size=" + "[" * 99 + "]" * 99, "50"),
        ("size=" + "9" * 100, "bits"),
        ("size=" + "1," * 99999, "long"),
    ],
    ids=lambda text: text[:30],
)
def test_an_option_that_reaches_nothing(option: str, fragment: str, tmp_path: Path) -> None:
    config = read_config(Case("", {"config.py": BASE}, {}).write(tmp_path))
    with refuses() as caught:
        apply_options(config, ["model.head.n=4", option])
    assert fragment in str(caught.value)
    assert config["model"]["head"]["n"] == 2


def test_a_key_that_is_no_name_is_not_written() -> None:
    with refuses("rename"):
        dump_config({"a-b": 1})
