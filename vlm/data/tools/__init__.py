"""Making shards, and looking at what is in them."""
