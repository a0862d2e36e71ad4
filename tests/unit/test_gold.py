"""A question's gold chunks, one or several: as a document names them, and as a study reads them from its samples."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_kinject.errors import ContextError
from lm_eval_kinject.models.task_hook import gold_of
from lm_eval_kinject.records import gold_ids
from lm_eval_kinject.study.load import _answer


def instance(**doc: Any) -> Instance:
    return Instance("loglikelihood", doc, ("c", "x"), 0, metadata=("t", 3, 1))


def test_a_field_holds_an_id_or_a_list_of_ids() -> None:
    for value, expected in (("a", "a"), (7, "7"), (["a", "b"], ("a", "b")), (["b", "a", "b"], ("b", "a")), ([], None)):
        assert gold_of(instance(gold=value), "gold") == expected
    assert gold_of(instance(gold=None), "gold") is None
    assert gold_of(instance(gold="a"), "other") is None
    assert gold_of(instance(gold="a"), None) is None


@pytest.mark.parametrize("value", [{"a": 1}, ["a", None], [["a"]]])
def test_what_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(ContextError, match=r"t, document 3: its field gold \(metadata\.kinject\.gold\) must hold"):
        gold_of(instance(gold=value), "gold")


def test_ids_of_none_one_and_several() -> None:
    assert [gold_ids(gold) for gold in (None, "ab", ("a", "b"))] == [(), ("ab",), ("a", "b")]


@pytest.mark.parametrize(
    ("gold", "rank", "place", "cluster"),
    [
        ("b", 2, 1, "b"),
        ("c", 3, None, "c"),
        (["b", "a"], 2, 2, "b"),
        (["a", "c"], 3, None, "a"),
        (["a", "d"], None, None, "a"),
    ],
)
def test_a_study_reads_them_from_its_samples(gold: Any, rank: int | None, place: int | None, cluster: str) -> None:
    trace = {"gold": gold, "hits": [{"id": one, "rank": n} for n, one in enumerate("abc", 1)], "used": ["b", "a"]}
    row = {"doc_id": 4, "doc": {}, "arguments": [["c", "x", {"kinject": trace}]], "resps": [], "acc": 1.0}
    answer = _answer("t", row, 0)
    assert (answer.gold_rank, answer.gold_place, answer.cluster) == (rank, place, cluster)
