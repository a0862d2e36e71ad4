"""What the reader of an edition has seen, as fingerprints: what its recall and its unseen wordings are measured by.

What it is for: `seen` is recorded when a reader is put into the package (``tests/gold/lab.json``), and a test compares:
a changed kind, name or world would make its recall, or its reading of what it never saw, no longer what is measured.
What it does not do: it looks at no weights.
"""

from __future__ import annotations

from typing import Any

from kinject_trainer.reader.mixture import RECALL_EVENTS, RECALL_SEED, training_kinds
from lm_eval_kinject.corpus.sources.newswire.kind import READER_HELD_OUT_KINDS, load_kinds
from lm_eval_kinject.corpus.sources.newswire.world import World
from lm_eval_kinject.provenance import fingerprint_records


def seen(edition: int) -> dict[str, Any]:
    """Fingerprints of an edition's recall world, its questions, and of each kind's held-out wordings.

    Args:
        edition: of the newswire.

    Returns:
        ``edition``, ``recall_world``, ``recall_questions`` and ``held_out``: kind -> the fingerprint's first 12 digits.
    """
    world = World(RECALL_SEED, training_kinds(edition), RECALL_EVENTS, "reader")
    events = [{"id": e.id, "kind": e.kind.kind, "values": dict(e.values)} for e in world.events]
    held_out = {}
    for kind in load_kinds(edition=edition):
        if kind.kind not in READER_HELD_OUT_KINDS:
            held = kind.held_out_only()
            records = [*([s.slots, s.phrasings] for s in held.sentences), *held.questions.items()]
            held_out[kind.kind] = fingerprint_records(records)[:12]
    return {
        "edition": edition,
        "recall_world": fingerprint_records(events),
        "recall_questions": fingerprint_records([{"kind": k.kind, "questions": k.questions} for k in world.kinds]),
        "held_out": held_out,
    }
