import numpy as np
import pytest

from data_prep.readers.reconstructions import Made, tell_apart


def made(kernel="", thickness="", acquisition=""):
    return Made(str(kernel), str(thickness), str(acquisition))


Z = np.arange(12.0)


@pytest.mark.parametrize(
    "slices",
    [
        [made()] * 12,
        [made("B30f", 2, 1)] * 12,
        [made(acquisition=k // 4) for k in range(12)],  # turns of the gantry, one after the other
        [made(acquisition=k) for k in range(12)],
        [made(thickness=1 + k // 6) for k in range(12)],  # thicker from the middle on
        [made("B30f" if k % 2 else "") for k in range(12)],  # not known of all
    ],
)
def test_one_reconstruction(slices):
    numbers, by = tell_apart(Z, slices)
    assert (numbers.tolist(), by) == ([0] * 12, "")


def test_time_points_at_the_same_positions_are_no_reconstructions():
    numbers, by = tell_apart(np.repeat(Z, 3), [made(acquisition=k % 3) for k in range(36)])
    assert (set(numbers.tolist()), by) == ({0}, "")


def test_several_reconstructions_are_numbered_whatever_their_order():
    slices = [made(f"B{30 + 10 * (k % 2)}f", 2 + k % 3) for k in range(12)]
    numbers, by = tell_apart(Z, slices)
    assert by == "kernel and thickness"
    assert numbers.max() == 5
    order = np.random.default_rng(0).permutation(12)
    shuffled, _ = tell_apart(Z[order], [slices[k] for k in order])
    np.testing.assert_array_equal(shuffled, numbers[order])


def test_kernels_one_after_the_other_are_two():
    numbers, by = tell_apart(Z, [made("B30f" if k < 6 else "B80f") for k in range(12)])
    assert (numbers.tolist(), by) == ([0] * 6 + [1] * 6, "kernel")
