"""Chunks are slices of their document, of bounded and even length, cut at sentence ends."""

from __future__ import annotations

import random
import re

import pytest

from lm_eval_kinject.corpus import chunk_document, chunk_documents
from lm_eval_kinject.corpus.chunk import count_words
from lm_eval_kinject.corpus.clean import squeeze, strip_html
from lm_eval_kinject.errors import ArgumentError
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
