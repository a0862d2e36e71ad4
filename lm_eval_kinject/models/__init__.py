"""The model types that lm_eval knows by name: its own classes with retrieval mixed in."""
