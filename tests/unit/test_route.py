"""Self-Route: its numbers on cases worked by hand, its lot, its articles, its figures and the fitted threshold."""

from __future__ import annotations

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
from lm_eval.api.instance import Instance

from lm_eval_kinject import cli
from lm_eval_kinject.context.route import (
    ByArticle,
    RandomRoute,
    SelfRoute,
    declined,
    entropy,
    margin,
    marker_for,
    unanswerable,
)
from lm_eval_kinject.corpus.corpus import Corpus
from lm_eval_kinject.errors import ArgumentError
from lm_eval_kinject.models.arguments import split
from lm_eval_kinject.models.prompts import Longer, PromptWriter, Written
from lm_eval_kinject.models.routing import Routed, Router, route_figures
from lm_eval_kinject.records import Chunk, Trace
from lm_eval_kinject.retrieval.controls import chunks_as_hits
from lm_eval_kinject.study.threshold import Scored, fit, points, read_questions


@pytest.mark.parametrize(
    ("answer", "declines"),
    [
        ("unanswerable", True),
        ("Unanswerable.", True),
        (" **UNANSWERABLE**\n", True),
        ("_unanswerable_", True),
        ("This is unanswerable from the text", True),
        ("", True),
        (" .\n", True),
        ("Abe Ash", False),
        ("unanswerables", False),
        ("answerable", False),
    ],
)
def test_declining(answer, declines):
    assert declined(answer) is declines


def test_the_marker_is_the_next_letter_or_the_word():
    assert marker_for([" A", " B", " C", " D"]) == "E"
    assert marker_for(["a", "b"]) == "c"
    assert marker_for([" Abe Ash", " Bea Birk"]) == "unanswerable"
    assert marker_for([" A", " C"]) == "unanswerable"
    assert marker_for([" A"]) == marker_for([]) == "unanswerable"


def test_numbers_by_hand():
    # options of -2 over one token and -6 over four (-1.5 each); a marker of three tokens at -3 (-1 each)
    assert unanswerable([-2.0, -6.0], [1, 4], -3.0, 3) == pytest.approx(0.5)
    # one token each: the plain difference of the log-likelihoods
    assert unanswerable([-2.0, -1.0], [1, 1], -4.0, 1) == pytest.approx(-3.0)
    assert margin([-4.0, -1.0, -1.5]) == pytest.approx(0.5)
    assert margin([-1.0, -1.0]) == 0.0
    assert entropy([-3.0] * 4) == pytest.approx(1.0)
    assert entropy([0.0, -math.inf, -math.inf]) == 0.0
    # shares 1/2, 1/4, 1/4: 1.5 bits of the log2(3) possible, whatever the scores' common part
    assert entropy([math.log(0.5) - 7, math.log(0.25) - 7, math.log(0.25) - 7]) == pytest.approx(1.5 / math.log2(3))
    assert math.isnan(margin([math.nan, -1.0]))
    assert math.isnan(entropy([math.nan, -1.0]))


def test_beyond_a_threshold():
    assert SelfRoute(route_by="margin", route_threshold=1.0).beyond(0.9)
    assert not SelfRoute(route_by="margin", route_threshold=1.0).beyond(1.0)
    assert SelfRoute(route_by="retrieval", route_threshold=0.3).beyond(0.2)
    assert SelfRoute(route_by="entropy", route_threshold=0.5).beyond(0.6)
    assert not SelfRoute(route_by="unanswerable", route_threshold=0.0).beyond(0.0)
    assert SelfRoute(route_by="margin", route_threshold=1.0).beyond(math.nan)  # not known to suffice
    assert not SelfRoute(route_by="margin").beyond(0.0)
    made = split({"route": "self-route"}, ()).rag.pipeline.route
    assert (made.route_threshold, made.route_k, made.declines) == (0.0, 20, True)
    both = split({"route": "self-route", "route_by": "entropy", "route_both": True}, ()).rag.pipeline.route
    assert (both.route_threshold, both.declines, both.permission("E")) == (None, False, "")


def test_the_words_that_permit_to_decline(tmp_path):
    assert SelfRoute().permission("E") == "Answer from the text above alone. If it doesn't say, answer E.\n\n"
    (tmp_path / "p.j2").write_text("Or {{ marker }}? ")
    made = split({"route": "self-route", "route_prompt": str(tmp_path / "p.j2")}, ()).rag.pipeline.route
    assert made.permission("unanswerable") == "Or unanswerable? "
    assert made.provenance()["route_prompt"] == "Or {{ marker }}? "
    for text, said in (("No.", "it never says {{ marker }}"), ("{{ marker", "not a Jinja template")):
        (tmp_path / "p.j2").write_text(text)
        with pytest.raises(ArgumentError, match=said):
            split({"route": "self-route", "route_prompt": str(tmp_path / "p.j2")}, ())


def test_the_lot_is_exact_nested_and_seeded():
    names = [f"question {i}" for i in range(200)]
    drawn = {rate: RandomRoute(route_rate=rate).drawn(names) for rate in (0.0, 0.25, 0.5, 1.0)}
    assert [len(of) for of in drawn.values()] == [0, 50, 100, 200]
    assert drawn[0.25] < drawn[0.5]
    assert RandomRoute(route_rate=0.5, route_seed=7).drawn(names) != drawn[0.5]
    assert {names[i] for i in drawn[0.5]} == {names[::-1][i] for i in RandomRoute(route_rate=0.5).drawn(names[::-1])}


def article(name, count):
    return [Chunk(f"{name}#{i}", f"{name} {i}", document_id=name, position=i) for i in range(count)]


def test_articles_are_whole_and_in_their_own_order():
    chunks = {"a": article("a", 3), "b": article("b", 2), "c": article("c", 2)}
    corpus = Corpus("x", tuple(c for of in chunks.values() for c in of), "f", "here")
    hits = chunks_as_hits([chunks["b"][1], chunks["a"][2]])
    longer = SelfRoute(route_context="articles").longer(corpus, hits, ())
    # the found ones first, as the budget drops them last
    assert [hit.chunk.id for hit in longer] == ["b#1", "a#2", "b#0", "a#0", "a#1"]
    assert [hit.chunk.id for hit in ByArticle().arrange(longer)] == ["b#0", "b#1", "a#0", "a#1", "a#2"]
    assert [hit.chunk.id for hit in ByArticle().arrange(longer[:3])] == ["b#0", "b#1", "a#2"]


def test_nothing_to_fall_back_on():
    corpus = Corpus("x", tuple(Chunk(f"c{i}", "t") for i in range(3)), "f", "here")
    SelfRoute().check(corpus, 2)
    with pytest.raises(ArgumentError, match="all 3 chunks of the corpus x are in the first prompt"):
        SelfRoute().check(corpus, 3)
    with pytest.raises(ArgumentError, match="a document of its own; pass route_context=chunks"):
        SelfRoute(route_context="articles").check(corpus, 1)


@pytest.mark.parametrize(
    ("rate", "jointly", "prompts"),
    [
        (0.0, False, [["short", "short", ""]]),
        # nothing is to be asked again, but the other processes may ask, and theirs is a joint call
        (0.0, True, [["short", "short", ""], ["long"]]),
        (1.0, True, [["short", "short", ""], ["long", "long"]]),
    ],
)
def test_how_often_the_model_is_called(rate, jointly, prompts):
    trace = Trace("q", chunks_as_hits([Chunk("c", "t")]), ("c",), (), None, 1)
    requests = []
    for i, option in enumerate((" a", " b")):
        one = Instance("loglikelihood", {}, ("short", option, {"kinject": {}}), i, ("t", 0, 1))
        longer = Longer("long", "short", ("c", "d"), True, "unanswerable")
        one.kinject_written = Written(None, ("bare", option), trace, (), "f", (), ("short",), (), longer)
        requests.append(one)
    requests.append(Instance("loglikelihood", {}, ("", " a"), 2, ("t", 0, 1)))  # mutual information
    calls = []

    def ask(asked):
        calls.append([request.args[0] for request in asked])
        return [(float(len(request.args[0])), False) for request in asked]

    host = SimpleNamespace(count=lambda text, bare: len(text))
    router = Router(RandomRoute(route_rate=rate), host, partial(PromptWriter.bare, None), ask, jointly=jointly)
    found = [score for score, _ in router.answers("loglikelihood", requests)]
    assert calls == prompts
    assert found == ([4.0, 4.0, 0.0] if rate else [5.0, 5.0, 0.0])
    assert [request.args[0] for request in requests] == (["long", "long", ""] if rate else ["short", "short", ""])
    assert router.routed == [Routed("t", 0, rate == 1.0, True, 5, 4)]


def test_figures_by_hand():
    rows = [  # routed, short, long: kept and right, kept and wrong, routed for nothing, routed and mended
        (False, 1.0, 1.0), (False, 0.0, 1.0), (True, 1.0, 1.0), (True, 0.0, 1.0), (True, 0.0, 0.0),
    ]  # fmt: skip
    found = route_figures(Routed("t", i, r, True, 10, 100, s, x) for i, (r, s, x) in enumerate(rows))["t"]
    assert (found["questions"], found["routed"], found["answerable_share"]) == (5, 3, 0.4)
    assert found["token_share"] == pytest.approx((5 * 10 + 3 * 100) / 500)
    assert (found["short_accuracy"], found["long_accuracy"]) == pytest.approx((0.4, 0.8))
    assert found["false_answerable"] == 0.5
    assert found["false_unanswerable"] == pytest.approx(1 / 3)
    alone = route_figures([Routed("t", 0, False, False, 10, 100)])["t"]
    assert "false_answerable" not in alone
    assert alone["questions_without_more_text"] == 1


def scored(*rows):
    return [Scored(value, short, long, 10, 40) for value, short, long in rows]


def test_a_threshold_by_hand():
    # the two doubtful questions are mended by more text, the two sure ones are spoilt by it
    questions = scored((0.1, 0, 1), (0.4, 0, 1), (1.0, 1, 0), (3.0, 1, 1))
    best, found = fit("margin", questions)
    assert [point.threshold for point in found] == [0.05, 0.25, 0.7, 2.0, 4.0]
    assert [point.accuracy for point in found] == [0.5, 0.75, 1.0, 0.75, 0.75]
    assert [point.answerable for point in found] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [point.tokens for point in found] == [0.25, 0.5, 0.75, 1.0, 1.25]
    assert [point.by_lot for point in found] == [0.5, 0.5625, 0.625, 0.6875, 0.75]
    assert best.threshold == 0.7
    assert fit("margin", questions, most_tokens=0.6)[0].threshold == 0.25
    with pytest.raises(ArgumentError, match="the short context alone takes 25% of the tokens"):
        fit("margin", questions, most_tokens=0.1)


def test_every_fitted_threshold_is_one_that_is_accepted_and_does_what_it_says():
    questions = scored((0.0, 1, 0), (0.5, 0, 1), (0.75, 0, 1), (None, 0, 1))
    for by in ("margin", "entropy", "unanswerable", "retrieval"):
        for point in points(by, questions):
            made = split({"route": "self-route", "route_by": by, "route_threshold": point.threshold}, ())
            stage = made.rag.pipeline.route
            routed = [one.value is None or stage.beyond(one.value) for one in questions]
            assert point.answerable == pytest.approx(1 - sum(routed) / 4)
            right = [one.long if away else one.short for one, away in zip(questions, routed, strict=True)]
            assert point.accuracy == pytest.approx(sum(right) / 4)


def test_of_equally_good_thresholds_the_cheapest():
    assert fit("entropy", scored((0.2, 1, 1), (0.6, 1, 1)))[0].answerable == 1.0


def test_test_questions_are_refused(tmp_path, monkeypatch, capsys):
    def write(split, **route):
        pipeline = {"route": {"name": "self-route", "route_both": True, "route_by": "margin", **route}}
        said = {"configs": {"t": {"test_split": split}}, "config": {"kinject": {"pipeline": pipeline}}}
        (tmp_path / "results_1.json").write_text(json.dumps(said))

    note = {"value": 0.5, "scores": {"short": 1.0, "long": 0.0}, "short_tokens": 3, "long_tokens": 9}
    row = {"doc_id": 0, "arguments": {"gen_args_0": {"arg_2": {"kinject": {"route": note}}}}}
    (tmp_path / "samples_t_1.jsonl").write_text(json.dumps(row) + "\n")
    write(None)
    assert read_questions(tmp_path) == ("margin", [Scored(0.5, 1.0, 0.0, 3, 9)])
    monkeypatch.setattr("sys.argv", ["kinject", "route", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    # one right question is kept: a margin of 1.5 would route it, 0.25 doesn't
    assert capsys.readouterr().out.splitlines()[-1] == "route=self-route,route_by=margin,route_threshold=0.25"
    write("test")
    with pytest.raises(ArgumentError, match="its questions are the test split of t"):
        read_questions(tmp_path)
    assert len(read_questions(tmp_path, validation=True)[1]) == 1
    write("test", route_both=False)
    with pytest.raises(ArgumentError) as caught:
        read_questions(tmp_path)
    assert len(caught.value.problems) == 2
