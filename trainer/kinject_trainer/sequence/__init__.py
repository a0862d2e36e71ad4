"""Month after month: one recipe over a list of corpora in their order, and what is known of each month after each.

`plan` reads and checks the file, `combine` puts months' corpora together, `merge` their adapters, `ask` asks the
questions, `measures` says what the answers come to, `report` writes that down, and `run` puts all of it in order.
"""

from kinject_trainer.sequence.plan import is_sequence
from kinject_trainer.sequence.run import SequenceResult, train_sequence

__all__ = ["SequenceResult", "is_sequence", "train_sequence"]
