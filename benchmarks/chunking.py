"""Our way of cutting documents beside semchunk's and chonkie's: speed, sizes, and where the cuts fall.

What it is for: the figures in docs/log.md. What it does not do: say which chunks are found best, which takes questions.

The one idea: all cut the same documents with one limit, counted in words by one rule, and are looked at by the same
code: of every cut between two chunks of a document, whether a sentence or line has just ended there; of every chunk,
whether it stands in its document as it is.

    pip install semchunk chonkie                        # in an environment of its own: the project needs neither
    python benchmarks/chunking.py --corpus realtimeqa:PATH
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib import metadata

from lm_eval_kinject.corpus.chunk import Chunker, Chunking, count_words
from lm_eval_kinject.corpus.corpus import find_source
from lm_eval_kinject.provenance import environment
from lm_eval_kinject.records import Document

_ENDS = re.compile(r"[.!?…]+[\"'”’)\]]*$")
Cut = Callable[[str], Sequence[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="as in corpus=, of documents")
    parser.add_argument("--words", type=int, default=180)
    parser.add_argument("--every", type=int, default=1, help="take every Nth document")
    arguments = parser.parse_args()
    items = find_source(arguments.corpus)[1].items
    documents = [item for item in items if isinstance(item, Document)][:: arguments.every]
    size = sum(len(document.text) for document in documents) / 1e6
    found = environment()
    print(f"{date.today().isoformat()}, {found['cpu']}, Python {found['python']}")
    print(f"{len(documents)} documents, {size:.1f} million characters, at most {arguments.words} words a chunk\n")
    print(f"{'':30} chars/CPU s  chunks  words  over  under half  ends well  as it is  lost")
    for name, cut in _ways(arguments.words):
        began = time.process_time()
        chunks = [cut(document.text) for document in documents]
        seconds = time.process_time() - began
        print(f"{name:30} {size / seconds:9.2f} M  {_figures(documents, chunks, arguments.words)}", flush=True)


def _ways(words: int) -> Iterator[tuple[str, Cut]]:
    chunker = Chunker(Chunking(words))
    yield "ours", lambda text: [chunk.text for chunk in chunker(Document("d", text))]
    if importlib.util.find_spec("semchunk"):
        import semchunk

        yield f"semchunk {metadata.version('semchunk')}", semchunk.chunkerify(count_words, words)
    if importlib.util.find_spec("chonkie"):
        import chonkie

        for kind in ("SentenceChunker", "RecursiveChunker"):
            # Its own "word" tokenizer counts the spaces between words, too; this one counts as we do.
            theirs = getattr(chonkie, kind)(tokenizer=count_words, chunk_size=words)
            name = f"chonkie {metadata.version('chonkie')} {kind.removesuffix('Chunker')}"
            yield name, lambda text, c=theirs: [chunk.text for chunk in c.chunk(text)]


def _figures(documents: Sequence[Document], cut: Sequence[Sequence[str]], words: int) -> str:
    sizes = [count_words(chunk) for chunks in cut for chunk in chunks]
    ends = [end for document, chunks in zip(documents, cut, strict=True) for end in _ends_well(document.text, chunks)]
    whole = sum(chunk in document.text for document, chunks in zip(documents, cut, strict=True) for chunk in chunks)
    lost = sum(
        len("".join(document.text.split())) - len("".join("".join(chunks).split()))
        for document, chunks in zip(documents, cut, strict=True)
    )
    over, under = sum(size > words for size in sizes), sum(size < words / 2 for size in sizes)
    shares = (100 * under / len(sizes), 100 * sum(ends) / max(1, len(ends)), 100 * whole / len(sizes))
    return (
        f"{len(sizes):6}  {sum(sizes) / len(sizes):5.1f}  {over:4}  {shares[0]:8.1f} %  {shares[1]:7.1f} %  "
        f"{shares[2]:6.1f} %  {lost:4}"
    )


def _ends_well(text: str, chunks: Sequence[str]) -> Iterator[bool]:
    """Of each cut within a document, whether it falls behind a sentence or a line; the space around it may be gone."""
    places, at = [], 0
    for chunk in chunks:
        at = text.index(chunk.strip(), at)
        places.append((at, at + len(chunk.strip())))
        at = places[-1][1]
    for (_, end), (start, _) in itertools.pairwise(places):
        yield _ENDS.search(text, max(0, end - 20), end) is not None or "\n" in text[end:start]


if __name__ == "__main__":
    main()
