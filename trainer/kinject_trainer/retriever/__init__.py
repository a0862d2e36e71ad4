"""Adapting a retriever: an encoder is trained on a corpus's text, and on which chunk answers which question.

`plan` reads and checks the recipe, `material` finds texts and pairs, `mask` and `masked` train by masked words,
`contrast` by pairs, `recall` measures, `card` writes that down, and `run` puts all of it in order.
"""

from kinject_trainer.retriever.plan import is_retriever
from kinject_trainer.retriever.run import RetrieverResult, train_retriever

__all__ = ["RetrieverResult", "is_retriever", "train_retriever"]
