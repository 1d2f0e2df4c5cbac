"""What the tasks on files make of records: where a file is, what it holds, how it is encoded."""

from __future__ import annotations

import copy
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import soundfile
from click.testing import CliRunner
from conftest import complaint, write_jsonl
from media import (
    RATE,
    SIZE,
    draw_image,
    draw_wave,
    make_extractor,
    make_network,
    save_media_model,
    write_media,
)
from PIL import Image
from pyarrow import parquet

from tapioca_export.benchmarking.timing import BenchmarkSettings, make_workloads
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, LoadError, TapiocaError
from tapioca_export.models import LoadOptions, load_config, load_model, load_processor
from tapioca_export.samples import Samples, load_roles, read_samples
from tapioca_export.tasks import AudioClassification, Batch, ImageClassification, Processor, Task

IMAGES, SOUNDS = ImageClassification(), AudioClassification()
TASKS_BY_COLUMN: dict[str, Task] = {"image": IMAGES, "audio": SOUNDS}


def processor_of(folder: Path, task: Task, options: LoadOptions | None = None) -> Processor:
    options = options or LoadOptions()
    return load_processor(task, folder, load_config(folder, options), options)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_media_model(tmp_path_factory.mktemp("vit"), "vit")


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_media_model(tmp_path_factory.mktemp("wav2vec2"), "wav2vec2")


@pytest.fixture(scope="module")
def processors(vit: Path, wav2vec2: Path) -> dict[str, Processor]:
    return {"image": processor_of(vit, IMAGES), "audio": processor_of(wav2vec2, SOUNDS)}


@pytest.fixture
def read(processors: dict[str, Processor], tmp_path: Path) -> Callable[..., Samples]:
    """Return a function that writes records beside their files and reads them."""

    def read(column: str, *records: dict[str, Any]) -> Samples:
        task, processor = TASKS_BY_COLUMN[column], processors[column]
        path = write_jsonl(tmp_path / "rows.jsonl", list(records))
        return read_samples(path, task.rows({}, processor), role="id-select")

    return read


def picture(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    draw_image(np.random.default_rng(seed), 0, is_target=False).save(path, **options)
    return path


def tone(path: Path, seed: int = 0, rate: int = RATE) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    soundfile.write(path, draw_wave(np.random.default_rng(seed), 0, is_target=False), rate)
    return path


WRITE = {"image": picture, "audio": tone}
ENDING = {"image": "png", "audio": "wav"}
both = pytest.mark.parametrize("column", ["image", "audio"])

# --- where files are ------------------------------------------------------------------------


@both
def test_a_relative_path_starts_at_the_sample_file(column: str, read: Any, tmp_path: Path) -> None:
    WRITE[column](tmp_path / "inner" / f"a.{ENDING[column]}")
    absolute = str(WRITE[column](tmp_path / f"b.{ENDING[column]}", 1))
    paths = [f"inner/a.{ENDING[column]}", f"inner/../inner/a.{ENDING[column]}", absolute]
    rows = read(column, *({column: path, "label": "red"} for path in paths)).rows
    assert rows[0].key == rows[1].key != rows[2].key
    assert rows[0].label == 0


@both
def test_a_relative_path_stays_in_its_folder_and_an_absolute_one_goes_where_it_says(
    column: str, read: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = WRITE[column](tmp_path_factory.mktemp("outside") / f"a.{ENDING[column]}")
    (tmp_path / "link").symlink_to(outside)
    for path in (f"../{outside.parent.name}/{outside.name}", "link"):
        with pytest.raises(LoadError, match=r"line 1: .* leads out of") as caught:
            read(column, {column: path})
        assert "absolute" in caught.value.hint
    assert len(read(column, {column: str(outside)})) == 1


@both
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone.png", "does not exist"), ("", "is empty"), (None, "is empty"), (3, "is int, not the path"),
        (".", "does not exist"), ({"bytes": None, "path": None}, "is empty"), ("a\0b", "does not exist"),
        ({"other": 1}, "is dict, not the path"), ("x" * 5000, "does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_refused_with_its_row(column: str, value: Any, message: str, read: Any) -> None:
    with pytest.raises(LoadError, match=f"line 1: {column} .*{message}"):
        read(column, {column: value})


@both
def test_equal_files_are_one_row_wherever_they_are(
    column: str, processors: dict[str, Processor], tmp_path: Path
) -> None:
    task, processor = TASKS_BY_COLUMN[column], processors[column]
    files = {
        name: write_media(tmp_path / name, column, 24, seed, is_target=False)
        for name, seed in (("id", 1), ("target", 2))
    }
    load_roles(files, task.rows({}, processor))
    first, other = (tmp_path / name / f"0.{ENDING[column]}" for name in files)
    other.write_bytes(first.read_bytes())
    with pytest.raises(LoadError, match="same row is in two roles"):
        load_roles(files, task.rows({}, processor))


@both
def test_a_folder_a_label_is_a_sample_file(
    column: str, processors: dict[str, Processor], tmp_path: Path
) -> None:
    for number, label in enumerate(("red", "blue")):
        for seed in (1, 2):
            WRITE[column](tmp_path / label / f"{seed}.{ENDING[column]}", 10 * number + seed)
    (tmp_path / "red" / ".hidden").write_text("no file of ours")
    (tmp_path / "README").write_text("nor this")
    task, processor = TASKS_BY_COLUMN[column], processors[column]
    samples = read_samples(tmp_path, task.rows({}, processor), role="id-select")
    assert samples.labels.tolist() == [2, 2, 0, 0]
    assert [Path(row.where).name for row in samples.rows] == [f"{n}.{ENDING[column]}" for n in (1, 2, 1, 2)]
    (tmp_path / "green" / "x").parent.mkdir()
    (tmp_path / "green" / "x").write_bytes(b"no such file")
    with pytest.raises(LoadError, match=f"green/x: the {column} cannot be read: "):
        read_samples(tmp_path, task.rows({}, processor), role="id-select")


@both
def test_datasets_and_parquet_hold_bytes_that_stay_encoded(
    column: str, processors: dict[str, Processor], tmp_path: Path
) -> None:
    contents = [WRITE[column](tmp_path / f"{n}.{ENDING[column]}", n).read_bytes() for n in range(3)]
    kind = datasets.Image() if column == "image" else datasets.Audio()
    features = datasets.Features({column: kind, "label": datasets.ClassLabel(names=["blue", "red"])})
    values = [{"bytes": content, "path": None} for content in contents]
    table = pyarrow.table({column: values, "label": [0, 1, 0]}, schema=features.arrow_schema)
    info = datasets.DatasetInfo(features=features)
    datasets.Dataset(datasets.table.InMemoryTable(table), info=info).save_to_disk(str(tmp_path / "saved"))
    parquet.write_table(table.drop_columns("label"), tmp_path / "data.parquet")
    task, processor = TASKS_BY_COLUMN[column], processors[column]
    saved = read_samples(tmp_path / "saved", task.rows({}, processor), role="id-select")
    assert saved.labels.tolist() == [2, 0, 2]
    bare = read_samples(tmp_path / "data.parquet", task.rows({}, processor), role="id-select")
    named = write_jsonl(tmp_path / "rows.jsonl", [{column: f"{n}.{ENDING[column]}"} for n in range(3)])
    files = read_samples(named, task.rows({}, processor), role="id-select")
    for samples in (saved, bare):
        assert [row.key for row in samples.rows] == [row.key for row in files.rows]
        for one, other in zip(samples.rows, files.rows, strict=True):
            first, second = (task.encode([row], processor) for row in (one, other))
            assert all(np.array_equal(first[name], second[name]) for name in first)


@both
def test_rows_go_to_workers(column: str, read: Any, tmp_path: Path) -> None:
    WRITE[column](tmp_path / f"a.{ENDING[column]}")
    samples = read(column, {column: f"a.{ENDING[column]}"})
    again = copy.deepcopy(samples)  # takes rows apart and puts them together as Ray does
    assert (again.rows[0].key, again.rows[0].where) == (samples.rows[0].key, samples.rows[0].where)


# --- images ---------------------------------------------------------------------------------


def test_images_are_upright_rgb_whatever_they_were(read: Any, processors: Any, tmp_path: Path) -> None:
    pixels = np.zeros((20, 10, 3), np.uint8)
    pixels[:10] = (200, 100, 50)  # the upper half
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "plain.png")
    upright.convert("L").save(tmp_path / "grey.png")
    upright.convert("RGBA").save(tmp_path / "alpha.png")
    upright.convert("P").save(tmp_path / "palette.gif")
    upright.convert("CMYK").save(tmp_path / "cmyk.tiff")
    names = ("plain.png", "turned.png", "alpha.png", "grey.png", "palette.gif", "cmyk.tiff")
    rows = read("image", *({"image": name} for name in names)).rows
    encoded = IMAGES.encode(rows, processors["image"])["pixel_values"]
    assert encoded.shape == (6, 3, SIZE, SIZE)
    assert encoded.dtype == np.float32
    assert np.array_equal(encoded[0], encoded[1])
    assert np.array_equal(encoded[0], encoded[2])
    assert encoded[0, :, 2, 2].tolist() == pytest.approx([200 / 127.5 - 1, 100 / 127.5 - 1, 50 / 127.5 - 1])
    assert np.ptp(encoded[3], axis=0).max() == 0  # grey
    np.testing.assert_allclose(encoded[5], encoded[0], atol=0.05)


def broken_images(folder: Path) -> dict[str, str]:
    """Write files that are no sound images; return what is said of each."""
    content = picture(folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "no.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.fromarray(np.full((9, 9), 70000, np.int32)).save(folder / "deep.tiff")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0" * 99)))
    return {
        "no.png": "it is none of BMP", "empty.png": "it is none of BMP", "script.eps": "it is none of BMP",
        "deep.tiff": "more than 8 bits", "bomb.png": "decompression bomb", "cut.png": "truncated",
    }  # fmt: skip


def test_broken_and_hostile_images_are_refused_with_their_row(read: Any, tmp_path: Path) -> None:
    whole = {"image": "whole.png", "label": 0}
    for name, message in broken_images(tmp_path).items():
        with pytest.raises(LoadError, match=rf"line 2: image .*{name} cannot be read: .*{message}") as caught:
            IMAGES.check_labels(read("image", whole, {"image": name, "label": 1}))
        assert "\n" not in caught.value.message


def test_a_large_image_is_refused_before_it_is_decoded(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE * SIZE - 1)  # Pillow only warns, up to twice this
    with pytest.raises(LoadError, match="decompression bomb"):
        read("image", {"image": "a.png"})


def test_a_cut_off_image_is_refused_before_a_search_begins(vit: Path, tmp_path: Path) -> None:
    files = {name: write_media(tmp_path / name, "image", 24, 3, is_target=name == "target") for name in
             ("id", "target")}  # fmt: skip
    for path in (tmp_path / "target").glob("*.png"):
        path.write_bytes(path.read_bytes()[:-40])
    arguments = [
        "select",
        "-m",
        vit,
        "--id",
        files["id"],
        "--target",
        files["target"],
        "-o",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    lines = complaint(result)
    assert len(lines) == 2
    assert re.search(r"rows.jsonl, line \d+: image .* cannot be read: .*truncated", lines[0])


def test_all_images_have_one_length_and_only_the_batch_varies(
    read: Any, processors: Any, tmp_path: Path
) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    samples = read("image", *({"image": f"{number}.png"} for number in range(3)))
    assert IMAGES.lengths(samples.rows, processors["image"]) == [(SIZE // 4) ** 2] * 3
    assert IMAGES.axes("pixel_values") == ("batch",)
    settings = BenchmarkSettings(batch_sizes=(1, 2))
    workloads = make_workloads(IMAGES, samples, processors["image"], settings)
    shapes = [(work.batch_size, work.sequence_length, work.unit) for work in workloads]
    assert shapes == [(1, 16, "patches"), (2, 16, "patches")]
    made = [work.batches[0]["pixel_values"].shape for work in workloads]
    assert made == [(1, 3, SIZE, SIZE), (2, 3, SIZE, SIZE)]
    with pytest.raises(ConfigError, match="--sequence-length has no meaning here: every row has 16 patches"):
        make_workloads(IMAGES, samples, processors["image"], replace(settings, sequence_lengths=(8,)))


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ({"size": {"height": 32, "width": 32}}, "gives 32 x 32 pixels, the model takes 16 x 16"),
        ({"do_resize": False}, "images of several sizes"),
        ({"do_normalize": True, "image_mean": [0.5]}, "does not encode plain images"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused(
    extractor: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_network("vit").save_pretrained(tmp_path)
    make_extractor("vit", **extractor).save_pretrained(tmp_path)
    with pytest.raises(TapiocaError, match=message):
        processor_of(tmp_path, IMAGES)


@both
def test_a_model_without_what_encodes_files_is_refused(column: str, tmp_path: Path) -> None:
    make_network({"image": "vit", "audio": "wav2vec2"}[column]).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="Nothing that encodes files") as caught:
        processor_of(tmp_path, TASKS_BY_COLUMN[column])
    assert "preprocessor_config.json" in caught.value.hint


@pytest.mark.parametrize(
    ("column", "library", "extra"), [("image", "PIL", "vision"), ("audio", "soundfile", "audio")]
)
def test_a_missing_extra_is_named(
    column: str,
    library: str,
    extra: str,
    vit: Path,
    wav2vec2: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match="which is not installed") as caught:
        processor_of({"image": vit, "audio": wav2vec2}[column], TASKS_BY_COLUMN[column])
    assert caught.value.hint == f"pip install 'tapioca-export[{extra}]'"


def test_a_head_with_several_labels_a_row_is_refused(tmp_path: Path) -> None:
    network = make_network("vit")
    network.config.problem_type = "multi_label_classification"
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="needs one of several labels an image"):
        processor_of(tmp_path, IMAGES)


# --- recordings -----------------------------------------------------------------------------


def test_recordings_are_mono_at_the_models_rate(read: Any, processors: Any, tmp_path: Path) -> None:
    def wave(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 50 * np.arange(rate // 2) / rate).astype(np.float32) / 2

    soundfile.write(tmp_path / "plain.wav", wave(RATE), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "fast.flac", wave(44100), 44100)
    stereo = np.stack([wave(RATE) + 0.25, wave(RATE) - 0.25], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE, subtype="FLOAT")
    rows = read("audio", *({"audio": name} for name in ("plain.wav", "fast.flac", "stereo.wav"))).rows
    plain, fast, mixed = (SOUNDS.decoded(row) for row in rows)
    assert len(plain) == len(fast) == RATE // 2
    np.testing.assert_allclose(mixed, plain, atol=1e-6)
    np.testing.assert_allclose(fast[20:-20], plain[20:-20], atol=0.01)
    encoded = SOUNDS.encode(rows, processors["audio"])
    assert encoded["input_values"].dtype == np.float32
    assert encoded["attention_mask"].dtype == np.int64


def test_recordings_are_cut_at_the_longest_length(wav2vec2: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=90_000) / 9, 2 * RATE)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"audio": "a.wav"}])
    for options, size in ((None, 30 * RATE), (LoadOptions(max_length=700), 700)):
        processor = processor_of(wav2vec2, SOUNDS, options)
        rows = read_samples(path, SOUNDS.rows({}, processor), role="id-select").rows
        assert SOUNDS.encode(rows, processor)["input_values"].shape == (1, size)
    with pytest.raises(ConfigError, match="--max-length 20 is too short"):
        processor_of(wav2vec2, SOUNDS, LoadOptions(max_length=20))


def test_broken_recordings_are_refused_with_their_row(read: Any, tmp_path: Path) -> None:
    tone(tmp_path / "whole.wav")
    (tmp_path / "no.wav").write_text("not a recording")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "short.wav", np.ones(20), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "slow.wav", np.ones(500), 3)
    noise = np.random.default_rng(0).normal(size=9000) / 9
    soundfile.write(tmp_path / "cut.flac", noise, RATE)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    found = {
        "no.wav": ".*", "empty.wav": "it has 0 values", "short.wav": "it has 20 values at 1000 Hz",
        "nan.wav": "not finite", "slow.wav": "sampling rate is 3 Hz", "cut.flac": ".*",
    }  # fmt: skip
    for name, message in found.items():
        whole = {"audio": "whole.wav", "label": 0}
        with pytest.raises(LoadError, match=rf"line 2: audio .*{name} cannot be read: .*{message}"):
            SOUNDS.check_labels(read("audio", whole, {"audio": name, "label": 1}))


def test_positions_are_those_that_the_network_makes(read: Any, wav2vec2: Path, tmp_path: Path) -> None:
    model = load_model(wav2vec2)
    for number in range(4):
        tone(tmp_path / f"{number}.wav", number)
    samples = read("audio", *({"audio": f"{number}.wav"} for number in range(4)))
    batch = SOUNDS.batch(samples, np.arange(4), model.processor)
    sizes = batch.inputs["attention_mask"].sum(axis=1)
    made = [int(model.network._get_feat_extract_output_lengths(int(size))) for size in sizes]
    assert SOUNDS.lengths(samples.rows, model.processor) == made
    told = Batch(batch.indices, batch.inputs, num_states=max(made))
    assert SOUNDS.state_mask(told, model.processor).sum(axis=1).tolist() == made


@pytest.mark.parametrize("overrides", [{"feat_extract_norm": "group"}, {}])
def test_where_padding_would_change_answers_only_equal_lengths_share_a_batch(
    overrides: dict[str, Any], read: Any, tmp_path: Path
) -> None:
    awake = make_network("wav2vec2", **overrides)
    awake.save_pretrained(tmp_path / "model")
    make_extractor("wav2vec2", return_attention_mask=bool(overrides)).save_pretrained(tmp_path / "model")
    processor = processor_of(tmp_path / "model", SOUNDS)
    assert not processor.pads_freely
    for number, size in enumerate((500, 400, 500, 450, 400, 500)):
        wave = draw_wave(np.random.default_rng(number), 0, is_target=False)
        soundfile.write(tmp_path / f"{number}.wav", np.resize(wave, size), RATE)
    samples = read("audio", *({"audio": f"{number}.wav"} for number in range(6)))
    batches = SOUNDS.length_sorted(samples, processor, 2)
    assert sorted(np.concatenate(batches).tolist()) == list(range(6))
    assert max(map(len, batches)) == 2
    for batch in batches:
        assert len({samples.rows[i].features["size"] for i in batch}) == 1


def test_heads_that_read_every_layer_are_refused(tmp_path: Path) -> None:
    save_media_model(tmp_path, "wav2vec2", use_weighted_layer_sum=True)
    with pytest.raises(TapiocaError, match="the head reads a weighted sum of all layers"):
        load_model(tmp_path)
