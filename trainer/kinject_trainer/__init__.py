"""The trainer: continued pretraining of a language model, full or LoRA, on a body of text."""
