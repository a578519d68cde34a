"""Self-supervised pre-training of CNNs on CT slices, and the honest comparison of what it is worth.

Reading order: `configs/spark.py`, `ctssl_jax/train.py`, `methods/spark.py`, `nn/masked.py`,
`nn/resnet.py`.
"""

__version__ = "0.1.0"
