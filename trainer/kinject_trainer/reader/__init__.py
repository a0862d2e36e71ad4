"""The reader: the embedded small language model, and how it is trained from scratch.

`vocabulary.py` trains its tokenizer, `mixture.py` writes its training text, `pretrain.py` runs the training and
`probe.py` measures it on worlds it has never seen. ``python -m kinject_trainer.reader.pretrain`` retrains it.
"""
