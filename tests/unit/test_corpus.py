"""Corpora from every kind of place, and what is said when one can't be used."""

from __future__ import annotations

import codecs
import json
import logging
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_eval_kinject.corpus import Corpus, bundled_corpora, load_corpus
from lm_eval_kinject.corpus.sources.files import read_path
from lm_eval_kinject.errors import ArgumentError, CorpusError, KinjectError
from lm_eval_kinject.provenance import fingerprint_records

LONG = " ".join(f"Sentence number {i} stands here." for i in range(100))  # 500 words


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def ids(corpus: Corpus) -> list[str]:
    return [chunk.id for chunk in corpus.chunks]


# What loads -----------------------------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    rows = ({"id": "a", "text": "One.", "title": "T", "date": "2024-05-06", "url": "u"}, {"_id": 7, "text": "Two."})
    path = jsonl(tmp_path / "news.jsonl", *rows, {"text": "Three.\u2028Still three."})
    corpus = load_corpus(path)
    assert corpus.name == "news"
    assert ids(corpus) == ["a", "7", "news:3"]
    first = corpus.chunks[0]
    assert (first.text, first.title, first.date, first.meta) == ("One.", "T", "2024-05-06", {"url": "u"})
    assert corpus.chunks[2].text == "Three.\u2028Still three."
    assert corpus.chunking == {"method": "as given"}
    assert corpus.by_id["7"].text == "Two."
    assert corpus.fingerprint == fingerprint_records(corpus.chunks)


def test_long_documents_are_cut_and_short_rows_stay_whole(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"id": "long", "text": LONG}, {"id": "short", "text": "Short."})
    corpus = load_corpus(path)
    assert ids(corpus) == ["long#0", "long#1", "long#2", "short"]
    assert corpus.chunking == {"method": "sentences", "words": 180, "overlap": 0}
    assert corpus.counts == {"documents": 2, "cut": 1}
    assert " ".join(c.text for c in corpus.chunks[:3]) == LONG
    assert len(load_corpus(path, words=50)) == 11
    assert load_corpus(path, words=50).fingerprint != corpus.fingerprint


def test_rows_that_name_their_document_are_chunks_and_never_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"id": "x", "text": LONG, "document_id": "d", "position": 3})
    (chunk,) = load_corpus(path).chunks
    assert (chunk.id, chunk.document_id, chunk.position, chunk.text) == ("x", "d", 3, LONG)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"text": "One."}, {"text": "Two."}]'),
        ("a.json", '{"data": [{"text": "One."}, {"text": "Two."}]}'),
        ("a.ndjson", '\ufeff{"text": "One."}\r\n\r\n{"text": "Two."}\r\n'),
        ("a.csv", 'title,text\n"T, t",One.\n,Two.\n'),
        ("a.tsv", "text\tid\nOne.\t1\nTwo.\t2\n"),
    ],
)
def test_other_row_formats(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [c.text for c in load_corpus(tmp_path / name).chunks] == ["One.", "Two."]


def test_parquet_columns(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "p.parquet", id=["a", "b"], text=["One.", "Two."], date=[date(2024, 1, 2), None], n=[1, 2]
    )
    one, two = load_corpus(path).chunks
    assert (one.date, one.meta, two.date) == ("2024-01-02", {"n": 1}, None)


def test_text_and_markdown_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("Plain.", encoding="utf-8")
    (tmp_path / "sub" / "a.md").write_text("# The title\n\nBody.", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("No.", encoding="utf-8")
    (tmp_path / "LICENSE.txt").write_text("No.", encoding="utf-8")
    corpus = load_corpus(tmp_path)
    assert ids(corpus) == ["b.txt", "sub/a.md"]
    assert corpus.chunks[1].title == "The title"


def test_a_readme_alone_is_text_unless_it_is_a_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Read me.", encoding="utf-8")
    assert ids(load_corpus(tmp_path)) == ["README.md"]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nRead me.", encoding="utf-8")
    with pytest.raises(CorpusError, match="has no readable file"):
        load_corpus(tmp_path)


def test_files_of_other_kinds_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("Text.", encoding="utf-8")
    (tmp_path / "scan.tiff").write_bytes(b"II*")
    with caplog.at_level(logging.WARNING):
        load_corpus(tmp_path)
    assert "1 files of other kinds are left out: scan.tiff" in caplog.text


def test_dataset_folder_with_card_and_ready_chunks(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    parquet(folder / "data" / "chunks-00000.parquet", id=["a"], text=[LONG])
    parquet(folder / "paraphrases.parquet", id=["p"], text=["Not a chunk."])
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-4.0\npretty_name: Nice\nrevision: v3\n---\n", encoding="utf-8"
    )
    corpus = load_corpus(folder)
    assert ids(corpus) == ["a"]  # prepared, so whole
    assert (corpus.licence, corpus.source, corpus.revision) == ("cc-by-4.0", "Nice", "v3")


@pytest.mark.parametrize("chunks", ["articles.parquet", "articles.jsonl"])
def test_other_wordings_beside_a_corpus_are_no_part_of_it(tmp_path: Path, chunks: str) -> None:
    if chunks.endswith("parquet"):
        parquet(tmp_path / chunks, id=["a"], text=[LONG])
        parquet(tmp_path / "paraphrases.parquet", chunk=["a"], number=[1], text=["In other words."])
        parquet(tmp_path / "validation.parquet", chunk=["a"], number=[4], text=["Held out."])
    else:
        jsonl(tmp_path / chunks, {"id": "a", "text": LONG})
        jsonl(tmp_path / "paraphrases.jsonl", {"chunk": "a", "number": 1, "text": "In other words."})
    text = " ".join(chunk.text for chunk in load_corpus(tmp_path).chunks)
    assert "Sentence number 99" in text
    assert "other words" not in text
    assert "Held out" not in text


def test_a_split_named_validation_is_part_of_a_corpus(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", id=["a"], text=[LONG])
    parquet(tmp_path / "validation.parquet", id=["b"], text=["Its rows name no chunk."])
    assert len({c.document_id for c in load_corpus(tmp_path).chunks}) == 2


def test_bundled_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tmp_path / "tasks"
    parquet(tasks / "events" / "corpus" / "chunks.parquet", id=["a"], text=["Bundled."])
    (tasks / "events" / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    (tasks / "no_corpus").mkdir()
    assert bundled_corpora(tasks) == ["events"]
    corpus = load_corpus("events", tasks_dir=tasks)
    assert (corpus.name, corpus.chunks[0].text, corpus.licence) == ("events", "Bundled.", "apache-2.0")
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "x.jsonl", {"text": "Mine."})
    (tmp_path / "events").mkdir()
    jsonl(tmp_path / "events" / "x.jsonl", {"text": "Mine."})
    assert load_corpus("events", tasks_dir=tasks).chunks[0].text == "Bundled."
    assert load_corpus("./events", tasks_dir=tasks).chunks[0].text == "Mine."


def test_the_same_chunks_have_the_same_fingerprint_wherever_they_are_read_from(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "One."}, {"id": "b", "text": "Two."}]
    one = load_corpus(jsonl(tmp_path / "one.jsonl", *rows))
    two = load_corpus(parquet(tmp_path / "two.parquet", id=["a", "b"], text=["One.", "Two."]))
    other = load_corpus(jsonl(tmp_path / "other.jsonl", *rows[::-1]))
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_provenance_is_plain_and_path_free(tmp_path: Path) -> None:
    text = json.dumps(load_corpus(jsonl(tmp_path / "c.jsonl", {"text": "One."})).provenance())
    assert str(tmp_path) not in text
    assert json.loads(text)["chunks"] == 1


def test_realtimeqa(tmp_path: Path) -> None:
    year = tmp_path / "past" / "2031"
    year.mkdir(parents=True)
    article = {"url": "u1", "title": "T &amp; t", "text": "<p>First.</p><p>Second.</p>", "publish_date": "2031/1/9"}
    rows = [
        {"question_id": "1", "search_result": [article, {"url": "u2", "title": "no text"}, article]},
        {"question_id": "2", "search_result": []},
        {"question_id": "3", "search_result": [{**article, "text": "Other text."}, "junk"]},
        {"question_id": "4"},
    ]
    jsonl(year / "20310110_gcs.jsonl", *rows)
    (year / "20310103_gcs.jsonl").write_text("{not json\n", encoding="utf-8")
    jsonl(year / "20310110_qa.jsonl", {"question_sentence": "?"})
    for path in (tmp_path, tmp_path / "past", year):
        corpus = load_corpus(f"realtimeqa:{path}")
        assert [c.text.split() for c in corpus.chunks] == [["First.", "Second."], ["Other", "text."]]
        assert corpus.chunks[0].title == "T & t"
        assert corpus.chunks[0].date == "2031-01-09"
        assert corpus.chunks[0].meta == {"url": "u1", "week": "20310110"}
        counts = {"files": 2, "questions": 3, "articles": 4, "duplicates": 1, "without_text": 1, "malformed": 3}
        assert corpus.counts == {"documents": 2, "cut": 0, **counts, "furniture_lines": 0}
        assert corpus.licence is not None
        assert "not stated" in corpus.licence


MARKED = {
    "UTF-8": codecs.BOM_UTF8,
    "UTF-16LE": codecs.BOM_UTF16_LE,
    "UTF-16BE": codecs.BOM_UTF16_BE,
    "UTF-32LE": codecs.BOM_UTF32_LE,
    "UTF-32BE": codecs.BOM_UTF32_BE,
}
TEXT = "Café „Zum 𝄞“ öffnet."  # one byte, two, three and four in UTF-8; a surrogate pair in UTF-16
FORMS = {
    "n.txt": TEXT,
    "n.md": f"# T\n\n{TEXT}",
    "n.csv": f"id,text\r\na,{TEXT}\r\n",
    "n.tsv": f"id\ttext\na\t{TEXT}\n",
    "n.jsonl": json.dumps({"id": "a", "text": TEXT}, ensure_ascii=False) + "\n",
    "n.json": json.dumps([{"id": "a", "text": TEXT}], ensure_ascii=False),
}


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("name", FORMS)
def test_a_byte_order_mark_says_how_a_file_is_read(tmp_path: Path, name: str, encoding: str) -> None:
    plain, marked = tmp_path / "plain" / name, tmp_path / "marked" / name
    plain.parent.mkdir()
    marked.parent.mkdir()
    plain.write_bytes(FORMS[name].encode("utf-8"))
    marked.write_bytes(MARKED[encoding] + FORMS[name].encode(encoding))
    (item,) = read_path(marked).items
    assert TEXT in item.text
    assert [item] == list(read_path(plain).items)


@pytest.mark.parametrize("encoding", MARKED)
def test_marked_files_of_a_folder_keep_their_roles(tmp_path: Path, encoding: str) -> None:
    """A card stays a card, and other wordings of the chunks no part of the corpus, however they are written."""
    other = json.dumps({"chunk": "a", "number": 1, "text": "In other words."})
    for name, text in {
        "chunks.jsonl": json.dumps({"id": "a", "text": TEXT}),
        "paraphrases.jsonl": other,
        "README.md": "---\nlicense: cc-by-4.0\n---\n",
    }.items():
        (tmp_path / name).write_bytes(MARKED[encoding] + text.encode(encoding))
    source = read_path(tmp_path)
    assert [item.id for item in source.items] == ["a"]
    assert source.licence == "cc-by-4.0"


def test_a_few_nul_characters_are_text(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_bytes(b"a\0b cdefgh")
    assert [item.text for item in read_path(tmp_path / "n.txt").items] == ["a\0b cdefgh"]


# What is wrong --------------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def many_bad_lines(folder: Path) -> Path:
    return write(folder / "c.jsonl", "\n".join(['{"text": "ok"}', *["{"] * 12]))


CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing file, near name": (
        lambda d: write(d / "corpus.jsonl", '{"text": "x"}') and d / "corpsu.jsonl",
        ("There is no corpus", "Did you mean", "corpus.jsonl?", "Give a"),
    ),
    "missing bundled name, near name": (lambda d: "current_event", ("neither a bundled name nor an existing path",)),
    "a name longer than a file's can be": (lambda d: "x" * 5000, ("There is no corpus",)),
    "no name": (lambda d: " ", ("No corpus was named",)),
    "empty file": (lambda d: write(d / "c.jsonl", "\n\n"), ("c.jsonl is empty",)),
    "empty text file": (lambda d: write(d / "c.txt", " \n"), ("c.txt is empty", "give it text")),
    "empty folder": (lambda d: d, ("has no readable file (it is empty)", ".jsonl")),
    "folder of other files": (lambda d: write(d / "a.pdf", "x").parent, ("has no readable file (it holds a.pdf)",)),
    "malformed line": (
        lambda d: write(d / "c.jsonl", '{"text": "ok"}\n{"text": oops}\n'),
        ("c.jsonl has 1 problem", "line 2: not valid JSON", "column 10"),
    ),
    "all problems at once": (
        lambda d: write(d / "c.jsonl", '{"titel": "x"}\n[1]\n{"text": 5, "id": "n"}\n{"text": " ", "id": "e"}\n'),
        (
            "has 4 problems",
            "line 1: no `text` field (it has: titel)",
            "line 2: is a list, not an object",
            "line 3: its `text` is a number, not a string (id 'n')",
            "line 4: empty text (id 'e')",
        ),
    ),
    "the first ten of many": (many_bad_lines, ("has 12 problems", "line 11:", "and 2 more")),
    "duplicate ids in a file": (
        lambda d: jsonl(d / "c.jsonl", {"id": "a", "text": "x"}, {"id": "b", "text": "y"}, {"id": "a", "text": "z"}),
        ("line 3: duplicate id 'a' (first at line 1)",),
    ),
    "duplicate ids across files": (
        lambda d: (
            jsonl(jsonl(d / "a.jsonl", {"id": "a", "text": "x"}).parent / "b.jsonl", {"id": "a", "text": "x"}).parent
        ),
        ("duplicate ids: 'a'", "unique across its files"),
    ),
    "id that is no string": (lambda d: jsonl(d / "c.jsonl", {"id": [], "text": "x"}), ("line 1: its id is a list",)),
    "not UTF-8": (
        lambda d: write(d / "c.jsonl", b'{"text": "ok"}\n{"text": "caf\xe9"}\n'),
        ("c.jsonl is not UTF-8: byte 0xe9 at offset 28 (line 2)", "iconv"),
    ),
    "not UTF-8 in a folder": (
        lambda d: write(d / "n.txt", b"\xff\xfd").parent,
        ("n.txt is not UTF-8: byte 0xff at offset 0 (line 1)",),
    ),
    "Latin-1": (lambda d: write(d / "c.csv", b"text\ncaf\xe9\n"), ("byte 0xe9", "`iconv -f ISO-8859-1 -t UTF-8`")),
    "Windows": (
        lambda d: write(d / "c.md", b"\x93caf\xe9\x94\n"),
        ("byte 0x93", "`iconv -f WINDOWS-1252 -t UTF-8`"),
    ),
    "UTF-8 with a mark, damaged": (
        lambda d: write(d / "n.txt", b"\xef\xbb\xbfa\nb\xff"),
        ("n.txt is not UTF-8: byte 0xff at offset 6 (line 2)", "cut off or damaged"),
    ),
    "UTF-16 cut off": (  # mark, `a`, newline, half of `b`
        lambda d: write(d / "n.txt", b"\xff\xfea\0\n\0b"),
        ("n.txt is not UTF-16: byte 0x62 at offset 6 (line 2)", "mark says UTF-16", "cut off"),
    ),
    "UTF-32 damaged": (
        lambda d: write(d / "n.txt", b"\0\0\xfe\xff\0\0\0a\0\xff\0\0"),
        ("n.txt is not UTF-32: byte 0x00 at offset 8 (line 1)", "mark says UTF-32"),
    ),
    "UTF-16 without a mark": (
        lambda d: write(d / "c.csv", "text\ncafé\n".encode("utf-16-le")),
        ("c.csv looks like UTF-16LE without a byte order mark", "`iconv -f UTF-16LE -t UTF-8`"),
    ),
    "UTF-16 without a mark, other order": (
        lambda d: write(d / "c.jsonl", '{"text": "x"}'.encode("utf-16-be")),
        ("`iconv -f UTF-16BE -t UTF-8`",),
    ),
    "UTF-32 without a mark": (
        lambda d: write(d / "c.txt", "Storm".encode("utf-32-le")),
        ("`iconv -f UTF-32LE -t UTF-8`",),
    ),
    "UTF-32 without a mark, other order": (
        lambda d: write(d / "c.txt", "Storm".encode("utf-32-be")),
        ("`iconv -f UTF-32BE -t UTF-8`",),
    ),
    "half a surrogate pair": (
        lambda d: write(d / "c.jsonl", '{"text": "a\\ud800b"}'),
        ("line 1: its text has half of a surrogate pair",),
    ),
    "unknown suffix": (
        lambda d: write(d / "c.odt", "x"),
        ("c.odt can't be read: files ending in '.odt' aren't known", ".jsonl"),
    ),
    "JSON Lines named .json": (
        lambda d: write(d / "c.json", '{"text": "x"}\n{"text": "y"}'),
        ("c.json is not valid JSON, line 2", "name the file .jsonl"),
    ),
    "JSON of another shape": (lambda d: write(d / "c.json", "3"), ("must hold a list of objects",)),
    "CSV without the column": (
        lambda d: write(d / "c.csv", "id;text\n1;x\n"),
        ("no column `text` (its columns: id;text)", "separated by commas"),
    ),
    "CSV with an open quote": (lambda d: write(d / "c.csv", 'text\n"open\n'), ("malformed at line",)),
    "CSV with an empty text": (lambda d: write(d / "c.csv", "id,text\n1,x\n2,\n"), ("line 3: empty text (id '2')",)),
    "no Parquet inside": (lambda d: write(d / "c.parquet", "PAR1"), ("c.parquet is not a readable Parquet file",)),
    "Parquet without the column": (
        lambda d: parquet(d / "c.parquet", body=["x"]),
        ("no column `text` (its columns: body)",),
    ),
    "Parquet with a null": (
        lambda d: parquet(d / "c.parquet", text=["x", None], id=["a", "b"]),
        ("row 2: its `text` is null",),
    ),
    "position that is none": (
        lambda d: jsonl(d / "c.jsonl", {"text": "x", "document_id": "d", "position": -1}),
        ("line 1: its position is -1",),
    ),
    "no RealTimeQA there": (lambda d: f"realtimeqa:{d / 'x'}", ("no such path", "realtimeqa_public")),
    "RealTimeQA without files": (lambda d: f"realtimeqa:{d}", ("no *_gcs.jsonl below it",)),
    "RealTimeQA without a text": (
        lambda d: f"realtimeqa:{jsonl(d / '1_gcs.jsonl', {'search_result': []})}",
        ("hold no article with a text",),
    ),
    "Hub dataset out of reach": (
        lambda d: "someone/some-corpus@v1",
        ("dataset someone/some-corpus can't be reached", "--repo-type dataset --revision v1", "Without a network"),
    ),
    "impossible cutting": (lambda d: write(d / "c.txt", "x"), ("words=0",)),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_say_what_where_and_what_to_do(case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    with pytest.raises(KinjectError) as caught:
        load_corpus(os.fspath(make(tmp_path)), **({"words": 0} if "cutting" in case else {}))
    assert isinstance(caught.value, ArgumentError if "cutting" in case else CorpusError)
    message = str(caught.value)
    for part in expected:
        assert part in message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = jsonl(tmp_path / "c.jsonl", {"text": "x"})
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorpusError, match=r"c\.jsonl can't be read: Permission denied"):
        load_corpus(path)
