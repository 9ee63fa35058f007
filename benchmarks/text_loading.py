"""Text: tokenising it once, and making samples of it.

    python benchmarks/text_loading.py [--text FILE] [--megabytes 8] [--samples 20000] [--repeats 3]

One core: the `tokenizers` library is told to use one thread. Without a file the text is that of
`pydoc_data`, repeated. A loader's sample is read, masked, stacked and made ready in this process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from quadriga.contracts import Share
from quadriga.data.reading.loader import Loader
from quadriga.data.reading.stream import PlainStream
from quadriga.data.text.corpus import TextCorpus, TextCorpusConfig
from quadriga.data.text.files import format_of, read_documents
from quadriga.data.text.pydoc import pydoc_documents
from quadriga.data.text.sentence_pairs import SentencePairsConfig
from quadriga.data.text.wordpiece import train_vocabulary, write_vocabulary

OPTIONS: dict[str, dict[str, Any]] = {
    "adjacent, 128": {},
    "adjacent, 128, whole words": {"whole_word": True},
    "segments, 128": {"pairing": "segments"},
    "segments, 512": {"pairing": "segments", "max_length": 512},
    "one segment, 512": {"next_sentence": False, "max_length": 512},
}


def write_text(folder: Path, text: Path | None, megabytes: int) -> Path:
    """Write a corpus of about so many megabytes, a sentence per line, and its vocabulary."""
    if text is None:
        documents = pydoc_documents()
    else:
        documents = [[]]
        for sentence in read_documents(text, format_of(text), "text"):
            if sentence is None:
                documents.append([])
            else:
                documents[-1].append(sentence)
    once = "\n\n".join("\n".join(document) for document in documents) + "\n\n"
    path = folder / "text.txt"
    path.write_text(once * max(1, megabytes * 10**6 // len(once)))
    sentences = [sentence for document in documents for sentence in document]
    write_vocabulary(train_vocabulary(lambda: sentences, 8000, True), folder / "vocab.txt")
    return path


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Return the median, the least and the most processor seconds of `work`."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times), min(times), max(times)


def build(folder: Path) -> TextCorpus:
    """Tokenise the corpus anew."""
    shutil.rmtree(folder / ".quadriga", ignore_errors=True)
    return TextCorpusConfig(root=folder, format="sentences", test_fraction=0).build("train")


def load(corpus: TextCorpus, options: dict[str, Any], samples: int) -> None:
    """Read so many samples in micro-batches of 32."""
    view = SentencePairsConfig(**options).build("train")
    loader = Loader(
        corpus,
        view,
        PlainStream(0, len(corpus), 32, world_size=1, accumulate=1),
        share=Share(),
        device=torch.device("cpu"),
        workers=0,
        prefetch=1,
        max_unreadable_fraction=0,
    )
    for _ in loader.batches(range(samples // 32)):
        pass


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = write_text(folder, options.text, options.megabytes).stat().st_size
        tokenising = seconds(lambda: build(folder), options.repeats)
        corpus = build(folder)
        tokens = len(corpus.store.tokens)
        print(f"{size / 1e6:.1f} MB, {tokens} tokens, {len(corpus)} pairs of sentences; one core")
        print(f"{'work':<36}{'per CPU s':>12}{'slowest':>12}{'fastest':>12}")
        _row("tokenising, tokens", tokens, tokenising)
        _row("tokenising, bytes", size, tokenising)
        opening = seconds(
            lambda: TextCorpusConfig(root=folder, format="sentences", test_fraction=0).build(
                "train"
            ),
            options.repeats,
        )
        _row("opening the cache, times", 1, opening)
        for name, values in OPTIONS.items():
            work = seconds(lambda v=values: load(corpus, v, options.samples), options.repeats)  # type: ignore[misc]
            _row(f"{name}, samples", options.samples // 32 * 32, work)


def _row(name: str, amount: int, times: tuple[float, float, float]) -> None:
    median, least, most = (amount / t for t in times)
    print(f"{name:<36}{median:>12,.0f}{most:>12,.0f}{least:>12,.0f}")


if __name__ == "__main__":
    main()
