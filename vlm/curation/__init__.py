"""What is made of features: virtual classes by k-means."""

from vlm.curation.cluster import Clusters, cluster_features
from vlm.curation.kmeans import Settings

__all__ = ["Clusters", "Settings", "cluster_features"]
