"""Triton backend: kernels and their launchers; nothing here validates arguments or knows of autograd.

match.py           the four launchers of `match`, as the schemas have them
match_one.py       one direction: kernels and launchers
match_both.py      both directions in one read: kernels and launchers
online_softmax.py  the state that the forward kernels share, its merge rule, the second-stage kernel
gradient.py        the gradient of one entry, shared by the backward kernels
launch.py          what the launchers share: outputs, layouts, scalars, the device context
configs.py         shipped launch configurations per architecture and size class

Importing this package or configs.py does not import Triton; the other modules do, and need it.
`semimatch_kernels.backends` decides whether they are used.
"""
