"""Which of the backends was faster where it was measured: the order of ``backend="auto"``.

written by benchmarks.auto
"""

#: Kind of device -> fused op -> backend -> times as long as the fastest, the fastest first.
MEASURED: dict[str, dict[str, dict[str, float]]] = {
    "cpu": {
        "correlation": {"cpu": 1.0, "reference": 1.3},
        "dual_softmax": {"cpu": 1.0, "reference": 8.5},
        "masked_contrastive_loss": {"cpu": 1.0, "reference": 7.6},
        "masked_contrastive_loss_features": {"cpu": 1.0, "reference": 3.8},
        "match": {"cpu": 1.0, "reference": 22.6},
        "match_features": {"cpu": 1.0, "reference": 2.3},
        "mutual_filter": {"cpu": 1.0, "reference": 7.0},
        "pseudo_labels": {"cpu": 1.0, "reference": 17.7},
        "soft_argmax": {"cpu": 1.0, "reference": 17.4},
    },
}
