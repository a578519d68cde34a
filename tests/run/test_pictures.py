import jax.numpy as jnp
import numpy as np
from PIL import Image

from ctssl_jax.augment import Intensity
from ctssl_jax.run.pictures import GAP, save_grid, to_display, views_rows


def test_views_of_all_sizes_are_rows_of_one_grid(tmp_path):
    large = jnp.stack([jnp.full((3, 8, 8, 1), value) for value in (-1.0, 1.0)])
    values = np.array([0.5, 1.5, 2.5], np.float32)  # of the three images' small view
    small = np.broadcast_to(values[:, None, None, None], (1, 3, 4, 4, 1))
    rows = views_rows((large, small), 8)
    assert [row.shape for row in rows] == [(3, 8, 8, 1)] * 3
    np.testing.assert_array_equal(rows[0], large[0])
    np.testing.assert_array_equal(rows[1], large[1])
    np.testing.assert_array_equal(rows[2][:, 2:6, 2:6], small[0])
    around = np.ones((8, 8), bool)
    around[2:6, 2:6] = False
    assert np.isnan(rows[2][:, around]).all()

    intensity = Intensity(mean=(0.5,), std=(0.2,))
    shown = [to_display(row, intensity, "grey8", (0.0, 1.0)) for row in rows]
    save_grid(shown, tmp_path / "views.png")
    grid = np.asarray(Image.open(tmp_path / "views.png"))
    assert grid.shape == (3 * 8 + 2 * GAP, 3 * 8 + 2 * GAP)
    below = grid[-8:]
    assert below[0, 0] == below[7, 7] == 128  # mid-grey around the small view
    assert below[3, 3] == round(255 * 0.6)
    assert grid[0, 0] == round(255 * 0.3)
    assert grid[8, 0] == 255  # the gap
    assert sorted(path.name for path in tmp_path.iterdir()) == ["views.png"]
