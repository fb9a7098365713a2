"""The definition of every op: plain PyTorch, any floating dtype, any device, differentiable by autograd.

One module an op family, named as the public one. It is what the fused backends must agree with, the fallback where none
of them runs, and the baseline of the benchmarks. Functions here trust their arguments: the public functions check them.
"""
