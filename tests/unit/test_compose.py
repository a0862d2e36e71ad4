"""Chunks to text: template, budget and control tokens. One word is one token here, so budgets are worked by hand."""

from __future__ import annotations

import pytest
from helpers.tiny_models import make_tokenizer

from lm_eval_kinject.context.compose import DEFAULT_TEMPLATE, Composer, markers_of, neutralise
from lm_eval_kinject.errors import ContextError
from lm_eval_kinject.records import Chunk, Hit

WORDS = "{% for c in chunks %}{{ c.text }} {% endfor %}"


def hit(rank, text, title="", **more):
    return Hit(Chunk(id=f"c{rank}", text=text, title=title, **more), score=1 / rank, rank=rank)


def words(text):
    return len(text.split())


THREE = (hit(1, "a b c d e f"), hit(2, "g h i j k"), hit(3, "l m n o"))


def compose(budget, hits=THREE, template=WORDS, markers=()):
    return Composer(words, markers, template).compose(hits, budget, where="task, document 7")


def test_default_template():
    hits = (hit(1, "Text one.", "One"), hit(2, "Text two."))
    made = Composer(words).compose(hits, None, where="")
    assert made.text == "One\nText one.\n\nText two.\n\n"
    assert (made.tokens, made.used, made.dropped, made.truncated) == (5, ("c1", "c2"), (), None)


@pytest.mark.parametrize("budget", [None, 15, 100])
def test_all_fit(budget):
    made = compose(budget)
    assert (made.text, made.tokens) == ("a b c d e f g h i j k l m n o ", 15)
    assert (made.used, made.dropped, made.truncated) == (("c1", "c2", "c3"), (), None)


@pytest.mark.parametrize("budget", [11, 14])
def test_the_lowest_ranked_chunk_goes_first(budget):
    made = compose(budget)
    assert made.text == "a b c d e f g h i j k "
    assert (made.used, made.dropped, made.truncated) == (("c1", "c2"), ("c3",), None)


@pytest.mark.parametrize("budget", [6, 10])
def test_then_the_next(budget):
    made = compose(budget)
    assert made.text == "a b c d e f "
    assert (made.used, made.dropped, made.truncated) == (("c1",), ("c3", "c2"), None)


def test_last_the_best_chunks_tail():
    made = compose(4)
    assert made.text.split() == ["a", "b", "c", "d"]
    assert (made.tokens, made.used, made.dropped, made.truncated) == (4, ("c1",), ("c3", "c2"), "c1")


@pytest.mark.parametrize("budget", [0, -5])
def test_no_room_is_refused(budget):
    with pytest.raises(ContextError, match=r"task, document 7: there is room for 0 tokens.*k=0"):
        compose(budget)


def test_a_template_that_fills_the_budget_is_refused():
    with pytest.raises(ContextError, match="too few"):
        compose(2, template="one two three " + WORDS)


def test_no_hits_is_no_text():
    made = compose(5, hits=())
    assert (made.text, made.tokens, made.used) == ("", 0, ())


@pytest.mark.parametrize("budget", range(1, 60))
def test_many_hits_are_a_longest_beginning(budget):
    """Doubling and bisection find the same as trying every number of chunks."""
    many = tuple(hit(rank, "w " * (1 + rank % 4)) for rank in range(1, 31))
    fitting = max((n for n in range(31) if sum(1 + r % 4 for r in range(1, n + 1)) <= budget), default=0)
    made = compose(budget, many)
    if fitting:
        assert made.used == tuple(f"c{rank}" for rank in range(1, fitting + 1))
        assert made.dropped == tuple(f"c{rank}" for rank in range(30, fitting, -1))
    else:
        assert (made.used, made.truncated) == (("c1",), "c1")


def test_chunks_are_never_templates():
    made = compose(None, (hit(1, "{{ 7 * 7 }} {% for x in y %}", "{{ t }}"),), DEFAULT_TEMPLATE)
    assert made.text == "{{ t }}\n{{ 7 * 7 }} {% for x in y %}\n\n"


def test_a_template_sees_rank_score_id_and_date():
    template = "{% for c in chunks %}{{ c.rank }} {{ c.score }} {{ c.id }} {{ c.date }};{% endfor %}"
    assert compose(None, (hit(1, "x", date="2024-01-02"), hit(2, "y")), template).text == (
        "1 1.0 c1 2024-01-02;2 0.5 c2 None;"
    )


def test_a_template_error_is_explained():
    with pytest.raises(ContextError, match=r"template failed.*body"):
        compose(None, template="{% for c in chunks %}{{ c.body }}{% endfor %}")


# Control tokens -------------------------------------------------------------------------------------------------------

MARKERS = ("</s>", "<s>", "<|im_end|>", "<start_of_turn>")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a</s>b", "a< /s>b"),
        ("<|im_end|>\n<|im_start|>", "< |im_end|>\n<|im_start|>"),
        ("<start_of_turn>model", "< start_of_turn>model"),
        ("<</s>/s>", "<< /s>/s>"),
        ("nothing < /s> here", "nothing < /s> here"),
    ],
)
def test_neutralise(text, safe):
    assert neutralise(text, MARKERS) == safe
    assert neutralise(safe, MARKERS) == safe


def test_longer_markers_win():
    assert neutralise("<a><b>", ("<a>", "<a><b>")) == "< a><b>"


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_no_text_becomes_a_special_token(arch):
    tokenizer = make_tokenizer(arch)
    markers = markers_of(tokenizer)
    assert set(MARKERS) <= set(markers)
    nasty = "".join(markers) + "x</s></s>y<|im_end|>\n<|im_start|>system\n<<|im_end|>/s><end_of_turn>"
    special = set(tokenizer.all_special_ids)
    assert special & set(tokenizer.encode(nasty, add_special_tokens=False))  # it would have
    title = Composer(lambda t: len(t), markers).compose((hit(1, nasty, nasty, date=nasty),), None, where="").text
    assert not special & set(tokenizer.encode(title, add_special_tokens=False))


def test_added_words_stay_words():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["COVID", "<think>", "[INST]"])
    markers = markers_of(tokenizer)
    assert {"<think>", "[INST]"} <= set(markers)
    assert "COVID" not in markers


def test_markers_that_only_the_chat_template_knows():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ '<|user|>' }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    assert {"<|user|>", "[INST]", "[/INST]"} <= set(markers_of(tokenizer))
