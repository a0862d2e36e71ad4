"""Chunks are slices of their document, of bounded and even length, cut at sentence ends."""

from __future__ import annotations

import random
import re

import pytest

from lm_eval_kinject.corpus import Chunker, Chunking, chunk_document, chunk_documents, make_corpus
from lm_eval_kinject.corpus.chunk import count_words
from lm_eval_kinject.corpus.clean import squeeze, strip_html
from lm_eval_kinject.corpus.sources.files import Source
from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.records import Document


def cut(text: str, words: int, overlap: int = 0) -> list[str]:
    return [c.text for c in chunk_document(Document("d", text), words=words, overlap=overlap)]


def test_a_short_document_is_one_chunk_with_its_own_id() -> None:
    document = Document("d", " As it is.\n", title="T", date="2024-01-02", meta={"u": 1})
    (chunk,) = chunk_document(document)
    assert (chunk.id, chunk.text, chunk.document_id, chunk.position) == ("d", " As it is.\n", "d", 0)
    assert (chunk.title, chunk.date, chunk.meta) == ("T", "2024-01-02", {"u": 1})


def test_by_hand() -> None:
    text = "One two three. Four five. Six seven eight nine. Ten."
    # 10 words, limit 6: two chunks of about 5; the sentence end nearest to 5 is after "five."
    assert cut(text, 6) == ["One two three. Four five.", "Six seven eight nine. Ten."]
    chunks = chunk_document(Document("d", text, title="T"), words=6)
    assert [(c.id, c.position, c.document_id, c.title) for c in chunks] == [("d#0", 0, "d", "T"), ("d#1", 1, "d", "T")]


def test_overlap_repeats_the_words_before() -> None:
    assert cut("a b c. d e f. g h i.", 3, overlap=2) == ["a b c.", "b c. d e f.", "e f. g h i."]


def test_a_sentence_longer_than_the_limit_is_cut_between_words() -> None:
    assert cut(" ".join("abcdefgh"), 3) == ["a b c", "d e f", "g h"]


def test_paragraphs_quotes_and_other_scripts_end_sentences() -> None:
    assert cut('He said "go." Then it', 3) == ['He said "go."', "Then it"]
    assert cut("no stop here\n\nnew part x y", 5) == ["no stop here", "new part x y"]
    assert cut("今日は晴れ。明日は雨。", 6) == ["今日は晴れ。", "明日は雨。"]
    assert count_words("今日は sunny") == 4


def test_nothing_is_lost_and_no_chunk_is_too_long_or_a_stump() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        words = [f"w{i}{rng.choice(['', '', '', '', '.', '!', '?'])}" for i in range(rng.randint(1, 400))]
        limit = rng.randint(5, 60)
        chunks = cut(" ".join(words), limit)
        assert " ".join(chunks).split() == words
        sizes = [len(c.split()) for c in chunks]
        assert max(sizes) <= limit
        assert len(chunks) == 1 or min(sizes) >= limit / 8
        assert len(chunks) <= 3 * len(words) / limit + 1


def test_several_documents_in_order() -> None:
    documents = [Document("a", "x. y."), Document("b", "z.")]
    assert [c.id for c in chunk_documents(documents, words=1)] == ["a#0", "a#1", "b"]


@pytest.mark.parametrize(("words", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_impossible_lengths(words: int, overlap: int) -> None:
    with pytest.raises(ArgumentError, match="take words >= 1 and 0 <= overlap < words"):
        chunk_document(Document("d", "x"), words=words, overlap=overlap)


def test_chunks_say_which_slice_they_are_and_which_pages_it_touches() -> None:
    text = "One two three. Four five. Six seven eight nine. Ten."
    document = Document("d", text, meta={"u": 1}, pages=(0, 15, 26))  # page 2 is "Four five. ", page 3 the rest
    first, second = Chunker(Chunking(6))(document)
    assert first.meta == {"u": 1, "chars": [0, 25], "pages": [1, 2]}
    assert second.meta == {"u": 1, "chars": [26, 52], "pages": [3, 3]}
    assert [text[slice(*c.meta["chars"])] for c in (first, second)] == [first.text, second.text]
    (whole,) = Chunker()(document)
    assert whole.meta == {"u": 1, "pages": [1, 3]}


def test_anywhere_fills_every_chunk_but_the_last() -> None:
    chunker = Chunker(Chunking(3, 1, cut="anywhere"))
    assert [c.text for c in chunker(Document("d", "a b. c d e. f g"))] == ["a b. c", "c d e. f", "f g"]


def test_sections_are_never_joined_and_give_their_heading() -> None:
    text = "Lead of it.\n\n# One #\nFirst. Second thing.\n== Two ==\nThird.\n#hash no heading\n= x"
    chunker = Chunker(Chunking(5, cut="sections"))
    made = [(c.id, c.text, c.meta.get("section")) for c in chunker(Document("d", text))]
    assert made == [
        ("d#0", "Lead of it.", None),
        ("d#1", "# One #\nFirst.", "One"),
        ("d#2", "Second thing.", "One"),
        ("d#3", "== Two ==\nThird.", "Two"),
        ("d#4", "#hash no heading\n= x", "Two"),
    ]


def test_tokens_of_a_tokenizer_are_counted() -> None:
    # MiniLM's word pieces: un ##put ##down ##able news .
    text = "unputdownable news. " * 4
    chunks = list(Chunker(Chunking(13, unit="minilm"))(Document("d", text)))
    assert [c.text for c in chunks] == ["unputdownable news. unputdownable news."] * 2
    cut = list(Chunker(Chunking(3, unit="minilm", cut="anywhere"))(Document("d", "unputdownable news.")))
    assert [c.text for c in cut] == ["unputdown", "able news."]
    assert [c.meta["chars"] for c in cut] == [[0, 9], [9, 19]]


def test_a_tokenizer_that_cant_be_read_is_named(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"The tokenizer .* can't be read .*: name words, minilm"):
        Chunker(Chunking(unit=str(tmp_path)))


def test_small_chunks_are_dropped_and_counted_and_ids_stay() -> None:
    text = "a b c d e.\n# H\n# I\nf g h i j k l m n. o p q. "
    given = {c.id: c.text for c in Chunker(Chunking(9, cut="sections"))(Document("d", text))}
    chunker = Chunker(Chunking(9, cut="sections", smallest=4))
    kept = {c.id: c.text for c in chunker(Document("d", text))}
    assert kept == {key: value for key, value in given.items() if len(value.split()) >= 4}
    assert chunker.counts == {"documents": 1, "cut": 1, "small": 1}
    corpus = make_corpus("c", Source((Document("x", "long enough it is"), Document("y", "no")), "two"),
                         chunking=Chunking(9, smallest=3))  # fmt: skip
    assert corpus.counts == {"documents": 2, "cut": 0, "small": 1}
    assert corpus.chunking == {"method": "sentences", "words": 9, "overlap": 0, "smallest": 3}


def test_a_very_long_document_is_cut_in_parts_and_nothing_is_lost() -> None:
    words = [f"word{i}{'.' * (i % 9 == 0)}" for i in range(250_000)]
    text = " ".join(words)
    assert len(text) > 2 << 20
    chunks = list(Chunker(Chunking(500))(Document("d", text)))
    assert " ".join(c.text for c in chunks).split() == words
    assert max(count_words(c.text) for c in chunks) <= 500
    assert all(c.text == text[slice(*c.meta["chars"])] for c in chunks)
    assert [c.position for c in chunks] == list(range(len(chunks)))


def test_all_that_is_wrong_with_settings_is_said_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        Chunker(Chunking(0, 0, unit=" ", cut="lines", smallest=3))  # type: ignore[arg-type]
    assert [p.partition(" ")[0] for p in caught.value.problems] == ["size=0", "smallest=3", "cut=lines", "unit"]


def test_strip_html() -> None:
    page = (
        "<html><head><script>var x = '<p>';</script><style>p {}</style></head><body><h1>Big&nbsp;news</h1>"
        '<p class="a">A &amp; B <b>won</b><br/>again</p><!-- no --><ul><li>one</li><li>two</li></ul></body></html>'
    )
    assert re.sub(r"\n+", "|", strip_html(page)) == "Big news|A & B won|again|one|two"


@pytest.mark.parametrize(
    "text", ["a < b and c > d", "</s> <|im_end|> {{ x }} <unk>", "x<y", "List<String> f()", "5 <3"]
)
def test_what_is_not_html_stays(text: str) -> None:
    assert strip_html(text) == text


def test_squeeze() -> None:
    assert squeeze("  a \t b\r\n\r\n\n\n c  \n") == "a b\n\nc"
