"""What is remembered of each slice."""

import hashlib
import json
import shutil
import struct

import numpy as np
import pytest
from memory import write_slices
from PIL import Image

from ctssl_jax.dataset.signatures import (
    DTYPES,
    ROW,
    SIDE,
    Signatures,
    describe,
    difference_hash,
    digest,
    load_file,
    load_signatures,
    save_signatures,
    signatures_of_records,
    thumbnail,
)
from ctssl_jax.errors import DataError
from ctssl_jax.files import read_json
from data_prep.source import Slice


def random_slice(seed, shape=(40, 56)):
    return np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)


def test_digest_is_sha256_of_shape_and_little_endian_pixels():
    image = np.array([[1, -2, 300], [4, 5, -1024]], np.int16)
    content = struct.pack("<2q", 2, 3) + struct.pack("<6h", 1, -2, 300, 4, 5, -1024)
    expected = struct.unpack("<Q", hashlib.sha256(content).digest()[:8])[0]
    assert digest(image) == expected
    assert digest(np.asfortranarray(image)) == expected
    assert digest(image.reshape(3, 2)) != expected
    assert digest(np.ascontiguousarray(image.T)) != expected


def test_difference_hash_of_a_picture_worked_out_by_hand():
    """At 9x8 nothing is resized: a bit is set where the right pixel is the brighter."""
    image = np.zeros((8, 9), np.int16)
    image[0] = [0, 1, 1, 0, 5, 4, 3, 8, 9]  # + = - + - - + +
    image[7] = range(9)
    # Scaled to 8 bits from the slice's 0 to 9.
    first, last = 0b1001_0011, 0b1111_1111
    assert difference_hash(image) == first << 56 | last
    assert difference_hash(image * 100 - 700) == first << 56 | last  # another scale, not another


def test_difference_hash_scales_by_the_slice_as_the_paper_stores_it():
    """Differences below a 255th of the slice's range vanish in 8 bits."""
    image = np.zeros((8, 9), np.int16)
    image[0] = [0, 3, 0, 0, 0, 0, 0, 0, 3000]
    assert difference_hash(image) == 0b0000_0001 << 56
    assert difference_hash(np.full((8, 9), 7, np.int16)) == 0


@pytest.mark.parametrize("shape", [(512, 512), (64, 64), (131, 70)])
def test_difference_hash_equals_the_package_that_the_authors_used(shape):
    imagehash = pytest.importorskip("imagehash")
    for seed in range(5):
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 12)).astype(np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
        image = image.astype(np.float64)
        grey = np.rint((image - image.min()) * (255 / np.ptp(image))).astype(np.uint8)
        bits = imagehash.dhash(Image.fromarray(grey)).hash.ravel()
        expected = int("".join("01"[int(bit)] for bit in bits), 2)
        assert difference_hash((image * 7 - 1000).astype(np.int16)) == expected


def test_thumbnail_is_seen_through_a_window():
    image = np.full((SIDE, SIDE), -1024, np.int16)  # of this size nothing is resized
    image[0, :3] = [400, 20000, -300]  # white; metal counts as white; half way
    small = thumbnail(image, "hu")
    assert small.shape == (SIDE, SIDE)
    assert small[0, :4].tolist() == [255, 255, 128, 0]  # 127.5 rounds to even
    assert not small[1:].any()
    grey = np.repeat(np.arange(SIDE, dtype=np.int16)[:, None], SIDE, axis=1)
    assert thumbnail(grey, "grey8")[:, 0].tolist() == list(range(SIDE))
    stretched = thumbnail((grey * 100 - 30000).astype(np.int16), "grey16")[:, 0]
    assert (stretched[0], stretched[-1]) == (0, 255)
    assert not thumbnail(np.full((50, 50), 9, np.int16), "grey16").any()


def test_a_dataset_holds_the_signatures_of_its_records_in_their_order(tmp_path):
    slices = [
        Slice(random_slice(n), f"patient {n // 4}", f"series {n // 2}", n % 2, label=n % 3 - 1)
        for n in range(8)
    ]
    out = write_slices(tmp_path / "set", {"train": slices[:4], "test": slices[4:]}, intensity="hu")
    for split in ("train", "test"):
        found, again = load_signatures(out, split), signatures_of_records(out, split)
        for name, dtype in DTYPES.items():
            assert getattr(found, name).dtype == dtype
            np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    by_digest = {describe(item.image, "hu").digest: item for item in slices}
    for row, key in enumerate(again.digest.tolist()):
        item = by_digest[key]
        assert again.dhash[row] == difference_hash(item.image)
        np.testing.assert_array_equal(again.thumbnail[row], thumbnail(item.image, "hu"))
        assert (again.slice_index[row], again.label[row]) == (item.slice_index, item.label)
    assert len(set(again.patient.tolist())) == 1
    assert len(set(again.series.tolist())) == 2
    assert b"patient" not in b"".join(again.patient.tolist() + again.series.tolist())


def test_a_dataset_without_signatures_has_them_computed(tmp_path):
    slices = [Slice(random_slice(n), "p", "s", n) for n in range(3)]
    out = write_slices(tmp_path / "set", {"train": slices}, classes=())
    expected = load_signatures(out, "train")
    shutil.rmtree(out / "signatures")
    np.testing.assert_array_equal(load_signatures(out, "train").thumbnail, expected.thumbnail)
    np.testing.assert_array_equal(load_signatures(out, "train").digest, expected.digest)


def rows(count):
    rng = np.random.default_rng(0)
    return Signatures(
        **{
            name: rng.integers(0, 100, (count, SIDE, SIDE) if name == "thumbnail" else count)
            .astype("S16" if dtype.kind == "S" else dtype)
            .astype(dtype)
            for name, dtype in DTYPES.items()
        }
    )


def test_parts_are_joined_and_taken(tmp_path):
    all_of_it = rows(7)
    parts = [all_of_it.take(slice(0, 3)), all_of_it.take(slice(3, 7))]
    joined = Signatures.concatenate(parts)
    save_signatures(tmp_path / "new" / "train.npy", parts)
    read = load_file(tmp_path / "new" / "train.npy")
    assert len(read) == 7
    assert np.load(tmp_path / "new" / "train.npy").dtype == ROW
    for name in DTYPES:
        np.testing.assert_array_equal(getattr(read, name), getattr(all_of_it, name))
        np.testing.assert_array_equal(getattr(joined, name), getattr(all_of_it, name))
        np.testing.assert_array_equal(
            getattr(read.take(np.array([4, 1])), name), getattr(all_of_it, name)[[4, 1]]
        )


def test_damaged_signatures_are_refused(tmp_path):
    path = tmp_path / "train.npy"
    with pytest.raises(DataError, match="no signatures can be read"):
        load_file(path)
    save_signatures(path, [rows(5)])
    content = path.read_bytes()
    others = [np.zeros(5), np.zeros((5, 1), ROW), np.array([object()] * 5)]
    for number in range(1 + len(others)):
        if number:
            np.save(path, others[number - 1])
        else:
            path.write_bytes(content[:-1])
        with pytest.raises(DataError, match="no signatures can be read"):
            load_file(path)


def test_signatures_of_other_records_are_refused(tmp_path):
    slices = [Slice(random_slice(n), "p", "s", n) for n in range(3)]
    out = write_slices(tmp_path / "set", {"train": slices}, classes=())
    manifest = read_json(out / "manifest.json")
    manifest["splits"]["train"]["slices"] = 4
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="has 4 slices but 3 signatures"):
        load_signatures(out, "train")
