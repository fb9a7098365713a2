"""Which of the backends was faster where it was measured: the order of ``backend="auto"``.

written by benchmarks.auto
"""

#: Kind of device -> fused op -> backend -> times as long as the fastest, the fastest first.
MEASURED: dict[str, dict[str, dict[str, float]]] = {
    "cpu": {
        "correlation": {"cpu": 1.0, "reference": 1.3},
        "dual_softmax": {"cpu": 1.0, "reference": 4.8},
        "masked_contrastive_loss": {"cpu": 1.0, "reference": 6.3},
        "masked_contrastive_loss_features": {"cpu": 1.0, "reference": 5.0},
        "match": {"cpu": 1.0, "reference": 14.2},
        "match_features": {"cpu": 1.0, "reference": 2.2},
        "mutual_filter": {"cpu": 1.0, "reference": 5.4},
        "pseudo_labels": {"cpu": 1.0, "reference": 14.9},
        "soft_argmax": {"cpu": 1.0, "reference": 14.7},
    },
}
