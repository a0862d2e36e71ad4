"""From question to prompt: what is asked of the retriever, and where its hits go."""
