"""Names and layouts: one to one, and back again."""

import jax
import numpy as np

from ctssl_jax.augment import ViewGroup
from ctssl_jax.interop import names
from ctssl_jax.methods import SparK
from ctssl_jax.nn.resnet import ResNet


def test_spark_names_are_one_to_one_and_layouts_come_back():
    method, encoder = SparK(view=ViewGroup(size=64)), ResNet(depth=50)
    initial = jax.eval_shape(lambda key: method.init(encoder, key, 3), jax.random.key(0))
    rng = np.random.default_rng(0)
    seen = set()
    for tree in (initial.params, initial.batch_stats):
        for path, leaf in names.named_leaves(tree):
            seen.add(names.spark_name(path))
            if leaf.size > 100_000:
                continue
            value = rng.standard_normal(leaf.shape)
            torch = names.to_torch_layout(path, value)
            np.testing.assert_array_equal(names.from_torch_layout(path, torch), value)
    leaves = jax.tree.leaves((initial.params, initial.batch_stats))
    assert len(seen) == len(leaves)
