"""`vlm cluster`: k-means of features, and the nearest clusters of each sample as its labels."""

from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.device import usable_device
from vlm.settings import resolve


@command("cluster")
def main(config: DictConfig) -> None:
    """Entry point of `vlm cluster`."""
    values = resolve(config)
    from vlm.curation.cluster import cluster_features
    from vlm.curation.kmeans import Settings
    from vlm.distributed import process_group

    settings = Settings(k=values["k"], iterations=values["iterations"], seed=values["seed"])
    with process_group() as topology:
        clusters = cluster_features(
            values["features"],
            Path(values["out"]),
            settings,
            topology,
            name=values["name"],
            labels_per_sample=values["labels_per_sample"],
            device=usable_device(values["device"]),
        )
        if not topology.is_main:
            return
    last = clusters.history[-1]
    repaired = sum(iteration.empty - iteration.left_empty for iteration in clusters.history)
    print(
        f"{clusters.num_samples} samples in {settings.k} clusters, {len(clusters.history) - 1} iterations\n"
        f"mean cosine {last.objective:.4f}, imbalance {last.imbalance:.3f}\n"
        f"empty clusters: {last.empty} at the end, {repaired} repaired before\n"
        f"labels: {clusters.places[0]}{', ...' if len(clusters.places) > 1 else ''}\n"
        f"report: {clusters.report}  (open it in a browser)"
    )


if __name__ == "__main__":
    main()
