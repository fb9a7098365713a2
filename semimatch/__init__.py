"""SemiMatch: semi-supervised learning of semantic correspondence, on top of `semimatch_kernels`.

`data` benchmarks and images, `models` backbones and heads, `training` augmentation, step and loop, `evaluation` PCK,
`visualize` pictures, `configs` shipped settings; `config.py` every setting, `fit.py` and `tasks.py` what the commands
of `cli.py` do, `parser.py` its help and errors, `report.py` and `runfolder.py` what they leave on disk, `errors.py` the
errors that a user can mend.
"""


def __getattr__(name: str) -> str:
    """``__version__``, that of `semimatch_kernels`: they are one distribution."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import semimatch_kernels

    return semimatch_kernels.__version__
