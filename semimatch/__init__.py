"""SemiMatch: semi-supervised learning of semantic correspondence, on top of `semimatch_kernels`.

`data` benchmarks and images, `models` backbones and heads, `training` augmentation, step and loop, `evaluation` PCK,
`visualize` pictures, `configs` shipped settings; `config.py` every setting, `fit.py` and `tasks.py` what the commands
of `cli.py` do, `report.py` and `runfolder.py` what they leave on disk, `errors.py` the errors that a user can mend.
"""
