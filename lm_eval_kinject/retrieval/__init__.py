"""Retrievers, and the index on disk that they search."""
