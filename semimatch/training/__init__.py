"""Training: augmentation (`augment`), flow targets (`targets`), one step (`step`), the loop (`trainer`), its state on
disk (`checkpoint`) and its logs (`log`)."""
