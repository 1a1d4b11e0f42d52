from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from distsparse.data import build
from distsparse.data.images import _load

GREY = np.arange(24 * 4 * 5, dtype=np.uint16).reshape(24, 4, 5).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (24, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, write_parquet, encode) -> Path:
    """16 + 8 grey images of 4x5, labels 0 … 3, whose pixels are GREY."""
    write_parquet(tmp_path / "train.parquet", [encode(x) for x in GREY[:16]], [n % 4 for n in range(16)])
    write_parquet(tmp_path / "test.parquet", [encode(x) for x in GREY[16:]], [n % 4 for n in range(8)])
    return tmp_path


def test_pixels_and_labels_are_those_of_the_files(folder) -> None:
    data = build("images", {"path": str(folder)})
    assert data.input_shape == (1, 4, 5)
    assert data.num_classes == 4
    assert data.name == folder.name
    assert data.validation is None
    assert data.train.inputs.dtype == torch.uint8
    assert torch.equal(data.train.inputs, torch.from_numpy(GREY[:16, None]))
    assert torch.equal(data.test.inputs, torch.from_numpy(GREY[16:, None]))
    assert data.train.labels.tolist() == [n % 4 for n in range(16)]


@pytest.mark.parametrize(
    ("columns", "struct"),
    [(("img", "labels"), True), (("image", "fine_label"), False), (("img", "label"), False)],
)
def test_hub_column_names_colour_and_shards_below_data(
    tmp_path, write_parquet, encode, columns, struct
) -> None:
    image, label = columns
    encoded = [encode(x) for x in COLOUR]
    names = {"image": image, "label": label, "struct": struct}
    for number, part in enumerate((slice(0, 3), slice(3, 16))):
        file = tmp_path / "data" / f"train-0000{number}-of-00002-abc{9 - number}.parquet"
        write_parquet(file, encoded[part], list(range(24))[part], **names)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", encoded[16:], [0] * 8, **names)
    data = build("images", {"path": str(tmp_path)})
    assert data.input_shape == (3, 4, 5)
    assert torch.equal(data.train.inputs, torch.from_numpy(COLOUR[:16]).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == list(range(16))
    assert data.num_classes == 16


def test_jpeg_is_decoded_as_pillow_does(tmp_path, write_parquet) -> None:
    image = Image.fromarray(COLOUR[0].repeat(4, 0).repeat(4, 1))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [buffer.getvalue()], [0])
    expected = np.asarray(Image.open(buffer))
    data = build("images", {"path": str(tmp_path)})
    assert torch.equal(data.train.inputs[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("size", [8, 64])
def test_many_images_stay_in_row_order(tmp_path, write_parquet, encode, size) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1100, 1, 1), np.uint8) + np.zeros(
        (1, size, size), np.uint8
    )
    encoded = [encode(x) for x in pixels]
    write_parquet(tmp_path / "train.parquet", encoded, [0] * 1100)
    write_parquet(tmp_path / "test.parquet", encoded[:1], [0])
    data = build("images", {"path": str(tmp_path)})
    assert torch.equal(data.train.inputs[:, 0], torch.from_numpy(pixels))


def test_a_grey_image_among_colour_ones_is_repeated(tmp_path, write_parquet, encode) -> None:
    write_parquet(tmp_path / "train.parquet", [encode(COLOUR[0]), encode(GREY[3])], [0, 1])
    write_parquet(tmp_path / "test.parquet", [encode(GREY[4])], [0])
    data = build("images", {"path": str(tmp_path)})
    assert torch.equal(data.train.inputs[1], torch.from_numpy(GREY[3]).expand(3, 4, 5))
    assert torch.equal(data.test.inputs[0], torch.from_numpy(GREY[4]).expand(3, 4, 5))


def test_the_first_shard_decides_channels_and_size(tmp_path, write_parquet, encode) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [encode(COLOUR[0])], [0])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [encode(GREY[3])], [1])
    write_parquet(tmp_path / "test.parquet", [encode(COLOUR[1])], [0])
    data = build("images", {"path": str(tmp_path)})
    assert torch.equal(data.train.inputs[1], torch.from_numpy(GREY[3]).expand(3, 4, 5))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [encode(COLOUR[0, :3])] * 2, [1, 1])
    os.utime(tmp_path / "train-00001-of-00002.parquet", ns=(1, 1))
    assert "train-00001-of-00002.parquet: row 0 is (channels, height, width) = (3, 3, 5)" in one_line(
        tmp_path
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {"label_names": ["a", "b", "c", "d", "e", "f"]},
        {"huggingface": {"info": {"features": {"label": {"names": list("abcdef"), "_type": "ClassLabel"}}}}},
    ],
)
def test_number_of_classes_from_metadata(folder, write_parquet, encode, metadata) -> None:
    write_parquet(folder / "train.parquet", [encode(GREY[0])], [1], metadata=metadata)
    assert build("images", {"path": str(folder)}).num_classes == 6


def test_number_of_classes_counts_rows_that_limit_leaves_out(folder, write_parquet, encode) -> None:
    write_parquet(folder / "train.parquet", [encode(x) for x in GREY[:16]], range(16))
    data = build("images", {"path": str(folder), "limit": 1})
    assert data.train.labels.item() < 15
    assert data.num_classes == 16


def test_validation_is_a_fixed_part_of_train(folder) -> None:
    first = build("images", {"path": str(folder), "validation": 5})
    _load.cache_clear()
    second = build("images", {"path": str(folder), "validation": 5})
    assert (len(first.train), len(first.validation)) == (11, 5)
    assert torch.equal(first.validation.inputs, second.validation.inputs)
    both = torch.cat([first.train.inputs, first.validation.inputs])
    assert sorted(both[:, 0, 0, 0].tolist()) == sorted(GREY[:16, 0, 0].tolist())
    assert first.validation.inputs[:, 0, 0, 0].tolist() != GREY[11:16, 0, 0].tolist()
    assert torch.equal(first.test.inputs, torch.from_numpy(GREY[16:, None]))


def test_limit_is_a_random_subset_in_order(folder) -> None:
    data = build("images", {"path": str(folder), "limit": 6})
    assert (len(data.train), len(data.test)) == (6, 6)
    kept = [int(np.flatnonzero((GREY[:16] == x[0].numpy()).all((1, 2)))[0]) for x in data.train.inputs]
    assert kept == sorted(set(kept)) != list(range(6))
    assert data.train.labels.tolist() == [row % 4 for row in kept]
    assert len(build("images", {"path": str(folder), "limit": 100}).train) == 16


def test_mean_and_std_are_those_of_the_rest_of_train(folder) -> None:
    data = build("images", {"path": str(folder), "validation": 5, "normalize": True})
    pixels = data.train.inputs.double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),), abs=1e-12)
    assert data.std == pytest.approx((pixels.std(unbiased=False).item(),), abs=1e-12)


def test_decoded_once_until_a_file_changes(folder, write_parquet, encode) -> None:
    first = build("images", {"path": str(folder)})
    assert build("images", {"path": str(folder), "flip": True}).train.inputs is first.train.inputs
    write_parquet(folder / "train.parquet", [encode(GREY[20])], [0])
    os.utime(folder / "train.parquet", ns=(1, 1))
    assert torch.equal(
        build("images", {"path": str(folder)}).train.inputs, torch.from_numpy(GREY[20][None, None])
    )


def test_where_the_folder_is_looked_for(folder, monkeypatch, tmp_path_factory) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.delenv("DISTSPARSE_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data\.path is required unless .* DISTSPARSE_DATA is set"):
        build("images", {})
    with pytest.raises(ValueError, match=f"no folder '{folder.name}'"):
        build("images", {"path": folder.name})
    monkeypatch.setenv("DISTSPARSE_DATA", str(folder.parent))
    assert len(build("images", {"path": folder.name}).train) == 16
    monkeypatch.setenv("DISTSPARSE_DATA", str(folder))
    assert len(build("images", {}).train) == 16
    monkeypatch.setenv("DISTSPARSE_DATA", "/nowhere")
    monkeypatch.chdir(folder.parent)
    assert len(build("images", {"path": folder.name}).train) == 16


def one_line(folder: Path, params: dict | None = None) -> str:
    with pytest.raises(ValueError) as error:
        build("images", {"path": str(folder)} | (params or {}))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files(tmp_path, folder) -> None:
    assert one_line(tmp_path / "none") == f"data.path: no folder '{tmp_path}/none'"
    (tmp_path / "empty").mkdir()
    assert "no Parquet files in" in one_line(tmp_path / "empty")
    (folder / "test.parquet").unlink()
    assert one_line(folder).endswith("has no test.parquet or test-*.parquet; it has train.parquet")


def test_a_missing_shard(folder) -> None:
    (folder / "test.parquet").rename(folder / "test-00001-of-00002.parquet")
    assert one_line(folder).endswith("should have 2 shards; it has test-00001-of-00002.parquet")


@pytest.mark.parametrize("keep", [0, 60, 100, -9])
def test_unreadable_parquet_names_the_file(folder, keep) -> None:
    file = folder / "test.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    assert one_line(folder).startswith(f"{file}: cannot be read as Parquet: ")


def test_damaged_pages_name_the_file(folder) -> None:
    file = folder / "test.parquet"
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)
    file.write_bytes(data)
    assert one_line(folder).startswith(f"{file}: cannot be read as Parquet: ")


def test_columns(folder, write_parquet, encode) -> None:
    encoded = [encode(GREY[0])]
    write_parquet(folder / "test.parquet", encoded, [0], image="picture")
    assert one_line(folder).endswith("test.parquet: needs a column image or img; it has picture, label")
    write_parquet(folder / "test.parquet", encoded, [0], label="y")
    assert one_line(folder).endswith("needs a column label or labels or fine_label; it has image, y")
    write_parquet(folder / "test.parquet", encoded, ["cat"])
    assert one_line(folder).endswith("column 'label' is string; allowed: integers")
    write_parquet(folder / "test.parquet", encoded * 2, [0, None])
    assert one_line(folder).endswith("row 1 has no label in column 'label'")


def test_an_image_column_without_bytes(folder) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), folder / "test.parquet")
    assert "column 'image' is string; allowed: binary, or struct<bytes" in one_line(folder)


def test_images_that_cannot_be_used_name_their_row(folder, write_parquet, encode) -> None:
    good, file = encode(GREY[0]), folder / "test.parquet"
    cases = {
        b"no image": "row 2 cannot be decoded: ",
        good[:50]: "row 2 cannot be decoded: ",
        None: "row 2 has no image bytes",
        encode(GREY[0].T): r"row 2 is (channels, height, width) = (1, 5, 4), the first image is (1, 4, 5); ",
        encode(COLOUR[0]): r"row 2 is (channels, height, width) = (3, 4, 5), the first image is (1, 4, 5); ",
        encode(GREY[0].astype(np.uint16) * 256): "row 2 cannot be decoded: pixel mode 'I;16'; allowed: 8-bit",
    }
    for number, (bad, message) in enumerate(cases.items()):
        write_parquet(file, [good, good, bad], [0, 0, 0])
        os.utime(file, ns=(number, number))
        assert one_line(folder).startswith(f"{file}: {message}")


def test_settings_that_do_not_fit(folder, write_parquet, encode) -> None:
    assert (
        one_line(folder, {"validation": 16}) == "data.validation = 16: must be below the 16 training samples"
    )
    assert "data.limit = 0" in one_line(folder, {"limit": 0})
    assert "data.crop_padding = -1" in one_line(folder, {"crop_padding": -1})
    assert "unknown key 'data.crop_pad' (did you mean 'crop_padding'?)" in one_line(folder, {"crop_pad": 1})
    write_parquet(folder / "test.parquet", [encode(GREY[0])], [-1])
    assert "test labels are in [-1, -1]; allowed with num_classes = 4: 0 to 3" in one_line(folder)
    write_parquet(folder / "test.parquet", [encode(GREY[0])], [0])
    write_parquet(folder / "train.parquet", [encode(GREY[0] * 0)], [0])
    assert "a channel of the training images is constant" in one_line(folder, {"normalize": True})


def test_empty_split(folder, write_parquet) -> None:
    write_parquet(folder / "train.parquet", [], np.array([], np.int64))
    assert re.search(r"train\.parquet: the train split has no rows", one_line(folder))


def test_mnist(data_root) -> None:
    data = build(
        "images", {"path": str(data_root / "mnist"), "limit": 6000, "normalize": True, "validation": 500}
    )
    assert data.input_shape == (1, 28, 28)
    assert data.num_classes == 10
    assert [len(split) for split in data.splits.values()] == [5500, 500, 6000]
    # The published statistics of all 60,000 images, within three standard errors of a sample of 5,500.
    assert data.mean == pytest.approx((0.1307,), abs=0.002)
    assert data.std == pytest.approx((0.3081,), abs=0.002)
    shares = data.train.labels.bincount() / 5500
    assert shares.min() > 0.08
    assert shares.max() < 0.125


def test_cifar10_is_colour(data_root) -> None:
    data = build(
        "images", {"path": str(data_root / "cifar10"), "limit": 200, "crop_padding": 4, "flip": True}
    )
    assert data.input_shape == (3, 32, 32)
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 4, True)
    assert data.train.inputs.float().std() > 30
