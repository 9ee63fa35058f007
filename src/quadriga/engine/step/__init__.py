"""One optimizer step: forward, backward, precision, sharding, update."""
