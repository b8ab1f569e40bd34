"""Files of weights: atomic, in shards, by reference, mapped. May import processes."""
