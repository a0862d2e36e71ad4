"""Where corpora come from: each source turns something outside into Documents or ready Chunks."""
