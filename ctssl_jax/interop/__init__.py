"""Weights in and out: our encoders for PyTorch, PyTorch's encoders for us.

names    what a parameter is called there, and how its array lies
recipe   how a CT slice becomes the input of exported weights
export   a run's weights as safetensors, with recipe, model card, parity vectors and checksums
card     the model card
foreign  encoders of others, as folders that fine-tuning starts from
pickles  checkpoints of PyTorch to safetensors, restricted to weights: a step of its own

The command is `python -m ctssl_jax.interop`.
"""
