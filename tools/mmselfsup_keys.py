"""Write docs/mmselfsup_keys.md: every key of a config of mmselfsup, and what becomes of it.

python tools/mmselfsup_keys.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quadriga.surfaces.mmselfsup.rows import Row
from quadriga.surfaces.mmselfsup.table import LIKE, SECTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "mmselfsup_keys.md"

_HEAD = """# Keys of a config of mmselfsup

Written by `python tools/mmselfsup_keys.py` from the table that `tools/train.py` itself reads
([mmselfsup.md](mmselfsup.md) is the tutorial). A key or a type that is not here is an error.

*honoured*: the run follows it. *no effect*: it is accepted, changes nothing, and is named once at
the start. *refused*: the run does not begin. Only the values in brackets are accepted.
A key stands under the type of the group it is in (`AdamW.betas`), else under its path; `*` is any
name. Types may be written with `mmselfsup.`, `mmcls.`, `mmpretrain.`, `mmengine.` or `mmcv.` before
them.
"""


def page() -> str:
    """Return the text of the page."""
    parts = [_HEAD, "| type | has the keys of |\n|---|---|"]
    parts[-1] += "".join(f"\n| `{name}` | `{other}` |" for name, other in LIKE.items())
    for title, rows in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| key or type | | why |\n|---|---|---|\n{_lines(rows)}")
    return "\n".join(parts) + "\n"


def _lines(rows: Sequence[Row]) -> str:
    return "\n".join(f"| `{row.key}` | {row.status}{_only(row)} | {row.why} |" for row in rows)


def _only(row: Row) -> str:
    values = [value for value in row.only or () if not isinstance(value, float)]
    return f" ({', '.join(f'`{value}`' for value in values)})" if values else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
