"""Writing: what is kept of what a writer says, troubles and all, worked out by hand on scripted replies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.question_writer import write
from helpers.writer_server import Fault, WriterServer

from lm_eval_kinject.errors import ArgumentError, CorpusError
from lm_eval_kinject.questions.folder import QuestionSet, fingerprint_question
from lm_eval_kinject.questions.ledger import Asker
from lm_eval_kinject.questions.write import Settings, chosen_chunks, expected_requests

TEXTS = {
    "c0": "The bridge at Arden was opened by Abe Ash. Storms had delayed carpenters twice. Musicians from Brill were "
    "heard along riverbanks. Nobody counted the fireworks afterwards. Schoolchildren carried yellow lanterns across.",
    "c1": "A museum in Corby bought eleven paintings. Their painter lived beside harbours. Visitors had queued through "
    "snowstorms. The director praised volunteers warmly. Tickets remained affordable everywhere.",
    "c2": "Too short.",
}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    file = tmp_path / "news.jsonl"
    rows = [{"id": name, "text": text, "date": "2042-05-03", "town": "Arden"} for name, text in TEXTS.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def rows_of(folder: Path, name: str = "questions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_two_of_four_questions_a_chunk(corpus: str, tmp_path: Path) -> None:
    with WriterServer() as server:
        write(server.url, corpus, str(tmp_path / "set"))
        assert len(server.seen) == 4  # two chunks, each written on and ranked; the third is too short
    rows = rows_of(tmp_path / "set")
    assert [row["source_chunk"] for row in rows] == ["c0", "c0", "c1", "c1"]
    for row in rows:
        right = row["choices"][row["answer"]]
        assert right in TEXTS[row["source_chunk"]]
        assert len(set(row["choices"])) == 4
        assert row["evidence"].replace(right, "___") in row["question"]
        assert row["writer"] == "scripted"
    assert [row["specificity"] for row in rows] == [1, 2, 1, 2]
    for one, two in (rows[:2], rows[2:]):
        assert len(one["question"]) >= len(two["question"])  # as the scripted writer ranks
    done = json.loads((tmp_path / "set" / "set.json").read_text())["stages"]["write"]
    assert (done["chunks"], done["questions"], done["short"], done["problems"]) == (2, 4, 0, {})
    assert (done["spent"]["paid"], done["spent"]["kept"]) == (4, 0)


def question(text: str, right: str, *wrong: str) -> dict[str, Any]:
    options = [{"text": right, "right": True}, *({"text": w, "right": False} for w in wrong)]
    return {"question": text, "options": options, "evidence": ""}


GOOD = [
    question("Who opened the bridge at Arden?", "Abe Ash", "Bea Birk", "Cal Cole", "Dot Dunn"),
    question("Who was delayed by storms at the bridge?", "carpenters", "masons", "painters", "plumbers"),
    question("Where did musicians come from?", "Brill", "Corby", "Dover", "Eston"),
    question("What did nobody count at the bridge?", "fireworks", "guests", "boats", "lanterns"),
]


def test_bad_candidates_are_counted_and_asked_for_again(tmp_path: Path) -> None:
    """First try: two good ones, a double of the first, and one whose answer isn't there. Second: junk. Third: good."""
    double = question("Who was it that opened the bridge at Arden?", "Abe Ash", "Bea Birk", "Cal Cole", "Dot Dunn")
    foreign = question("Who closed the bridge at Arden?", "Eli East", "Bea Birk", "Cal Cole", "Dot Dunn")
    asked: list[str] = []
    corpus = tmp_path / "one.jsonl"
    corpus.write_text(json.dumps({"id": "c0", "text": TEXTS["c0"]}))

    def script(system: str, user: str, seed: int) -> str:
        if system.startswith("You order"):
            return json.dumps({"order": [3, 1, 4, 2]})
        asked.append(user)
        rounds = [[GOOD[0], GOOD[1], double, foreign], None, GOOD[2:]]
        chosen = rounds[seed - 1]
        return json.dumps({"questions": chosen}) if chosen else "{broken"

    with WriterServer(script=script) as server:
        write(server.url, str(corpus), str(tmp_path / "set"))
    rows = rows_of(tmp_path / "set")
    assert [row["id"] for row in rows] == ["c0/q2", "c0/q0"]
    assert [row["question"] for row in rows] == [GOOD[2]["question"], GOOD[0]["question"]]
    problems = json.loads((tmp_path / "set" / "set.json").read_text())["stages"]["write"]["problems"]
    assert problems == {"near-duplicate": 1, "answer not in the text": 1, "junk JSON": 1}
    assert "Write 4 questions" in asked[0]
    assert "Mistakes" not in asked[0]
    for said in (GOOD[0]["question"], "Write 2 questions", "two questions asked for the same fact", "own words"):
        assert said in asked[1]
    assert "one JSON object" in asked[2]
    assert "same fact" not in asked[2]  # only the try before is complained of


def test_a_writer_that_cannot_rank_or_write(corpus: str, tmp_path: Path) -> None:
    def script(system: str, user: str, seed: int) -> str:
        if system.startswith("You order"):
            return json.dumps({"order": [1, 1, 2, 3]})
        return json.dumps({"questions": GOOD}) if "Arden" in user else "I'm sorry, I can't."

    with WriterServer(script=script) as server:
        write(server.url, corpus, str(tmp_path / "set"))
    assert [row["id"] for row in rows_of(tmp_path / "set")] == ["c0/q0", "c0/q1"]
    done = json.loads((tmp_path / "set" / "set.json").read_text())["stages"]["write"]
    assert done["problems"] == {"ranking: no order of all questions": 2, "refusal": 3}
    assert (done["chunks"], done["short"], done["questions"]) == (2, 1, 2)


def test_a_double_of_another_chunk_gives_way_to_the_next_best(tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text("".join(json.dumps({"id": f"c{n}", "text": TEXTS["c0"] + " " * n}) + "\n" for n in range(2)))

    def script(system: str, user: str, seed: int) -> str:
        return json.dumps({"order": [1, 2, 3, 4]} if system.startswith("You order") else {"questions": GOOD})

    with WriterServer(script=script) as server:
        write(server.url, str(file), str(tmp_path / "set"))
    assert [row["id"] for row in rows_of(tmp_path / "set")] == ["c0/q0", "c0/q1", "c1/q2", "c1/q3"]


def test_right_options_are_dealt_to_all_places_by_the_seed(tmp_path: Path) -> None:
    from lm_eval_kinject.questions.write import _shuffled

    def places(seed: int) -> list[int]:
        row = {"choices": list("RXYZ"), "answer": 0}
        shuffled = [_shuffled({**row, "id": f"q{n}"}, seed) for n in range(400)]
        assert all(row["choices"][row["answer"]] == "R" and sorted(row["choices"]) == list("RXYZ") for row in shuffled)
        return [row["answer"] for row in shuffled]

    assert places(1) == places(1) != places(2)
    assert all(70 <= count <= 130 for count in Counter(places(1)).values())  # 100, within 3.5 standard deviations


def test_troubles_on_the_way_change_nothing(corpus: str, tmp_path: Path) -> None:
    with WriterServer() as server:
        write(server.url, corpus, str(tmp_path / "calm"))
    kinds = ("429", "500", "cut", "page", "cut before", "400 schema", "no usage")
    with WriterServer({n: Fault(kind) for n, kind in enumerate(kinds)}) as server:
        write(server.url, corpus, str(tmp_path / "stormy"))
    for name in ("questions.jsonl", "chunks.jsonl"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "stormy" / name).read_bytes()
    faults = json.loads((tmp_path / "stormy" / "set.json").read_text())["stages"]["write"]["faults"]
    assert sum(faults.values()) == 6
    assert faults["rate limits"] == faults["server errors"] == faults["form not taken by the server"] == 1


def test_a_second_run_pays_nothing(corpus: str, tmp_path: Path) -> None:
    with WriterServer() as server:
        write(server.url, corpus, str(tmp_path / "set"))
        before = (tmp_path / "set" / "questions.jsonl").read_bytes()
        requests = len(server.seen)
        write(server.url, corpus, str(tmp_path / "set"))
        assert len(server.seen) == requests
    assert (tmp_path / "set" / "questions.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "set" / "set.json").read_text())["stages"]["write"]["spent"] == {
        "paid": 0, "kept": 4, "read": 0, "written": 0, "unmetered": 0
    }  # fmt: skip


def test_the_estimate_counts_what_is_not_there_yet(corpus: str, tmp_path: Path) -> None:
    settings = Settings(min_words=10)
    with WriterServer() as server:
        write(server.url, corpus, str(tmp_path / "set"), settings=Settings(min_words=10, limit=1))
        there = QuestionSet.open(tmp_path / "set")
        with there.locked() as ledger:
            from lm_eval_kinject.questions.asking import Endpoint

            expected = expected_requests(chosen_chunks(there.corpus.chunks, settings), settings)
            found = Asker(Endpoint(server.url), ledger).estimate(expected)
    # Two chunks; one was written on. Rankings are guessed, as their words aren't known.
    assert (len(expected), found.paid, found.kept) == (4, 3, 1)
    assert found.written == 4 * 160 + 2 * 20


# The folder -----------------------------------------------------------------------------------------------------------


def test_the_corpus_goes_along_as_it_was(corpus: str, tmp_path: Path) -> None:
    from lm_eval_kinject.corpus import load_corpus

    there = QuestionSet.begin(tmp_path / "set", corpus)
    assert there.corpus.fingerprint == load_corpus(corpus).fingerprint
    assert there.chunk("c0").meta == {"town": "Arden"}
    assert there.manifest["corpus"]["name"] == "news"


def test_a_folder_holds_one_set_and_one_worker(corpus: str, tmp_path: Path) -> None:
    there = QuestionSet.begin(tmp_path / "set", corpus)
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "text": "Other words."}\n')
    with pytest.raises(CorpusError, match="other chunks"):
        QuestionSet.begin(tmp_path / "set", str(other))
    with pytest.raises(CorpusError, match="begin one with `kinject questions write"):
        QuestionSet.open(tmp_path / "none")
    with pytest.raises(CorpusError, match="no questions yet"):
        there.questions()
    with there.locked(), pytest.raises(CorpusError, match="Another `kinject questions`"), there.locked():
        pass
    (tmp_path / "set" / "chunks.jsonl").write_text('{"id": "x", "text": "Other words."}\n')
    with pytest.raises(CorpusError, match="has been changed"):
        QuestionSet.open(tmp_path / "set")


def test_a_question_is_named_by_what_it_asks() -> None:
    row = {"id": "a", "question": "Who?", "choices": ["x", "y"], "answer": 0, "evidence": "z"}
    assert fingerprint_question(row) == fingerprint_question({**row, "id": "b", "evidence": ""})
    assert len({fingerprint_question(row), fingerprint_question({**row, "answer": 1})}) == 2


def test_settings_and_chunks_that_make_no_sense(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as error:
        Settings(asked=2, kept=3, tries=0, limit=0)
    assert len(error.value.problems) == 3
    with pytest.raises(CorpusError, match="lower --min-words"):
        chosen_chunks(QuestionSet.begin(tmp_path / "set", corpus).corpus.chunks, Settings())
