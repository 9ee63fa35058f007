"""Small files in the official formats of the nine GLUE tasks."""

from __future__ import annotations

from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("good", "bad", "film", "the", "a", "is", "was", "plot", "actor", '"', ".", "?", "##s")

MNLI_HEAD = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)


def write_vocabulary(folder: Path) -> Path:
    path = folder / "vocab.txt"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((*SPECIAL, *WORDS)) + "\n")
    return path


def put(folder: Path, name: str, *lines: str, end: str = "\n", start: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = start + "".join(f"{line}{end}" for line in lines)
    (folder / name).write_bytes(text.encode())


def mnli(number: int, label: str, several: bool) -> str:
    many = f"{label}\t" * 5 if several else f"{label}\t"
    return f"{number}\t1\t1x\tfiction\t(a)\t(b)\t(S)\t(T)\tthe film\tis bad\t{many}{label}"


def write_official(root: Path) -> None:
    """Write every task with three rows to train on, two to evaluate and two to predict."""
    write_vocabulary(root)
    cola = root / "CoLA"
    put(cola, "train.tsv", "gj04\t1\t\tthe film", "gj04\t0\t*\tfilm the", "bc01\t1\t\ta plot")
    put(cola, "dev.tsv", "gj04\t1\t\tthe actor", "gj04\t0\t*\tactor the")
    put(cola, "test.tsv", "index\tsentence", "0\tthe plot", "1\tplot the")
    sst = root / "SST-2"
    put(sst, "train.tsv", "sentence\tlabel", "good film \t1", 'a "bad film \t0', "good\t1")
    put(sst, "dev.tsv", "sentence\tlabel", "good plot\t1", "bad plot\t0")
    put(sst, "test.tsv", "index\tsentence", "0\tgood", "1\tbad")
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = ("1\t7\t8\tthe film\ta film", '0\t9\t10\tthe "plot\tan actor', "1\t1\t2\ta\tthe")
    put(root / "MRPC", "train.tsv", head, *rows, end="\r\n", start="\ufeff")
    put(root / "MRPC", "dev.tsv", head, *rows[:2], end="\r\n", start="\ufeff")
    head = "index\t#1 ID\t#2 ID\t#1 String\t#2 String"
    put(root / "MRPC", "test.tsv", head, "0\t7\t8\tthe film\ta film", "1\t9\t1\tplot\tactor")
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    row = "{}\tmain-news\tx\t2012\t1\tn\tn\tthe film\ta film"
    rows = tuple(f"{row.format(i)}\t{score}" for i, score in enumerate(("5.000", "0.25", "3")))
    put(root / "STS-B", "train.tsv", f"{head}\tscore", *rows)
    put(root / "STS-B", "dev.tsv", f"{head}\tscore", *rows[:2])
    put(root / "STS-B", "test.tsv", head, row.format(0), row.format(1))
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    rows = ("5\t1\t2\tis the film good?\tgood?\t1", "6\t3\t4\tis it\tbad?\t0")
    broken = ("7\t5\t6\tis a line", "broken ?\tis it\t1")
    put(root / "QQP", "train.tsv", head, *rows * 30, *broken, rows[0])
    put(root / "QQP", "dev.tsv", head, *rows)
    put(root / "QQP", "test.tsv", "id\tquestion1\tquestion2", "0\tis?\tthe?", "1\tshort")
    folder = root / "MNLI"
    labels = ("neutral", "entailment", "contradiction")
    rows = tuple(mnli(i, label, several=False) for i, label in enumerate(labels))
    put(folder, "train.tsv", f"{MNLI_HEAD}\tlabel1\tgold_label", *rows)
    head = f"{MNLI_HEAD}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
    rows = tuple(mnli(i, label, several=True) for i, label in enumerate(labels))
    put(folder, "dev_matched.tsv", head, *rows[:2])
    put(folder, "dev_mismatched.tsv", head, *rows[1:], rows[0])
    rows = tuple(mnli(i, "x", several=False).removesuffix("\tx\tx") for i in range(2))
    put(folder, "test_matched.tsv", MNLI_HEAD, *rows)
    put(folder, "test_mismatched.tsv", MNLI_HEAD, *rows)
    for name, first, second, labels in (
        ("QNLI", "question", "sentence", ("entailment", "not_entailment")),
        ("RTE", "sentence1", "sentence2", ("not_entailment", "entailment")),
        ("WNLI", "sentence1", "sentence2", ("1", "0")),
    ):
        head = f"index\t{first}\t{second}"
        rows = tuple(f"{i}\tthe film {i}\tis bad\t{label}" for i, label in enumerate(labels))
        put(root / name, "train.tsv", f"{head}\tlabel", *rows, rows[0])
        put(root / name, "dev.tsv", f"{head}\tlabel", *rows)
        put(root / name, "test.tsv", head, "0\tthe plot\tis good", "1\ta film\tis bad")
