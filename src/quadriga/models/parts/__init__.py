"""Building blocks of architectures: blocks, embeddings, initial values."""
