"""What is made beside shards: virtual classes of features by k-means, hard negatives of captions."""
