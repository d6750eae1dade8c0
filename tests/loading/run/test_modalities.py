"""A load, with every proof, of small models of every modality."""

import importlib.util
import json
import re
import struct
import sys
import types
import wave

import numpy as np
import pytest

from devctl.errors import UsageError
from devctl.loading.run.media import image_inputs, read_wave, resampled
from devctl.models.files.resolve import resolve
from tests import small_models
from tests.marks import one_in, slow

FIRST = ["qwen2-vl", "time-series"]
"""Modalities that the fast tests load."""

IMAGES = {"llava", "paligemma", "gemma3", "qwen2-vl", "qwen2.5-vl", "idefics3", "internvl"}


@pytest.mark.parametrize("name", [*FIRST, *slow(*(name for name in small_models.MODALITIES if name not in FIRST))])
def test_every_modality(devctl, saved, name):
    done = devctl("load", saved(name), "--map", "cpu", "--verify", "--max-new-tokens", "3", "--json")
    assert done.code == 0, done.err + done.out
    report = json.loads(done.out)
    assert all(proof["passed"] for proof in report["proofs"])
    given = {i["name"] for i in report["smoke"]["inputs"]}
    if name in IMAGES:
        assert {"input_ids", "pixel_values"} <= given
    assert not any(re.search("only the rest is tried", note) for note in report["notes"])


def test_what_is_not_tried_is_noted(devctl, saved, tmp_path):
    done = devctl("load", saved("qwen2-audio"), "--map", "cpu")
    assert done.code == 0, done.err
    assert "note: no sounds are known for Qwen2AudioForConditionalGeneration: only the rest is tried" in done.out
    done = devctl("load", tmp_path / "qwen2-audio", "--map", "cpu", "--audio", "a.wav")
    assert (done.code, "no sounds are known for" in done.err) == (2, True)


def inputs(done):
    return {i["name"]: i["shape"] for i in json.loads(done.out)["smoke"]["inputs"]}


# as big as the workload


@pytest.mark.parametrize("name", one_in(2, ["llama", "whisper", *slow("t5", "vit", "clip", "mamba")]))
def test_a_batch(devctl, checkpoint, name):
    done = devctl("load", checkpoint(name), "--map", "cpu", "--batch-size", "3", "--verify", "--json")
    assert done.code == 0, done.err
    assert all(shape[0] == 3 for shape in inputs(done).values())
    assert json.loads(done.out)["smoke"]["batch_size"] == 3


@pytest.mark.parametrize("name", ["clap", *slow("qwen2-vl", "musicgen", "llava", "time-series")])
def test_a_batch_of_other_things(devctl, saved, name):
    done = devctl("load", saved(name), "--map", "cpu", "--batch-size", "2")
    assert done.code == 0, done.err


@pytest.mark.parametrize("length", [1, 56, *slow(5, 16, 40)])
def test_a_context_of_a_length(devctl, checkpoint, length):
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--context-length", length, "--json")
    assert done.code == 0, done.err
    assert inputs(done) == {"input_ids": [1, length], "attention_mask": [1, length]}


def test_a_context_for_a_tokenizer_and_an_image(devctl, minilm, saved):
    done = devctl("load", minilm, "--map", "cpu", "--context-length", "100", "--batch-size", "2", "--json")
    assert set(map(tuple, inputs(done).values())) == {(2, 100)}
    llava = saved("llava")
    done = devctl("load", llava, "--map", "cpu", "--context-length", "40", "--json")
    assert inputs(done)["input_ids"] == [1, 40]
    done = devctl("load", llava, "--map", "cpu", "--context-length", "16")
    assert (done.code, done.err) == (2, "devctl: --context-length 16: the image alone takes 16 tokens\n")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    one_in(
        3,
        [
            (
                "llama",
                ["--context-length", "57"],
                "--context-length 57 and 8 new ones: this model takes at most 64 tokens",
            ),
            ("bert", ["--context-length", "65"], "--context-length 65: this model takes at most 64 tokens in all"),
            ("vit", ["--context-length", "5"], "--context-length 5: no text goes into ViTForImageClassification"),
            ("llama", ["--image", "cat.png"], "--image cat.png: no image goes into LlamaForCausalLM"),
            ("vit", ["--audio", "a.wav"], "--audio a.wav: no sound goes into ViTForImageClassification"),
            ("whisper", ["--image", "cat.png"], "--image cat.png: no image goes into WhisperForConditionalGeneration"),
            ("llama", ["--batch-size", "0"], "--batch-size"),
        ],
    ),
)
def test_wrong_use(devctl, checkpoint, name, options, said):
    done = devctl("load", checkpoint(name), "--map", "cpu", *options)
    assert done.code == 2
    assert said in done.err


# pictures


# transformers imports Pillow's own parts where it is installed
no_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is not None, reason="the real Pillow is tested instead")


@no_pillow
def test_a_picture_needs_pillow(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match="reading pictures needs Pillow, which is not installed"):
        image_inputs(tmp_path / "cat.png", resolve(str(checkpoint("vit"))), None)


class Picture:
    """Stands in for Pillow's, where that is not installed."""

    def __init__(self, size=(40, 20)):
        self.size = size

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def convert(self, _):
        return self

    def resize(self, size):
        return Picture(size)

    def __array__(self, dtype=None, copy=None):
        return np.full((self.size[1], self.size[0], 3), 255, dtype=dtype)


@pytest.fixture
def pillow(monkeypatch):
    class UnidentifiedImageError(OSError):
        pass

    def read(file):
        if file.read() != b"picture":
            raise UnidentifiedImageError
        return Picture()

    image = types.SimpleNamespace(open=read)
    monkeypatch.setitem(
        sys.modules, "PIL", types.SimpleNamespace(Image=image, UnidentifiedImageError=UnidentifiedImageError)
    )


@no_pillow
@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_picture(devctl, checkpoint, name, tmp_path):
    (tmp_path / "cat.png").write_text("picture")
    done = devctl("load", checkpoint(name), "--map", "cpu", "--image", tmp_path / "cat.png", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["smoke"]["source"] == "image"
    assert inputs(done)["pixel_values"] == [1, 3, 32, 32]


@no_pillow
@pytest.mark.usefixtures("pillow")
def test_pictures_that_are_none(devctl, checkpoint, tmp_path):
    (tmp_path / "cat.png").write_text("a cat")
    done = devctl("load", checkpoint("vit"), "--map", "cpu", "--image", tmp_path / "cat.png")
    assert (done.code, "is no picture that Pillow can read" in done.err) == (2, True)
    done = devctl("load", checkpoint("vit"), "--map", "cpu", "--image", tmp_path / "absent.png")
    assert (done.code, "can't be read: No such file or directory" in done.err) == (2, True)


def test_a_real_picture(devctl, checkpoint, saved, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (50, 70), 128).save(tmp_path / "grey.png")
    for folder in (checkpoint("vit"), checkpoint("clip"), saved("llava")):
        done = devctl("load", folder, "--map", "cpu", "--image", tmp_path / "grey.png", "--json")
        assert done.code == 0, done.err
        assert inputs(done)["pixel_values"] == [1, 3, 32, 32]


# sounds


def write_wave(path, samples, *, rate=8000, channels=1, width=2):
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(samples)
    return path


def test_a_sound(devctl, saved, tmp_path):
    path = write_wave(tmp_path / "a.wav", struct.pack("<8000h", *(range(8000))))
    done = devctl("load", saved("wav2vec2"), "--map", "cpu", "--audio", path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["smoke"]["source"] == "audio"
    assert inputs(done) == {"input_values": [1, 16_000]}  # a second, at the model's rate
    assert devctl("load", saved("encodec"), "--map", "cpu", "--audio", path).code == 0


def test_a_sound_through_the_models_own_extractor(devctl, checkpoint, tmp_path):
    from transformers import WhisperFeatureExtractor

    for path in checkpoint("whisper").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sound = write_wave(tmp_path / "a.wav", b"\0\1" * 800)
    done = devctl("load", tmp_path, "--map", "cpu", "--audio", sound)
    assert (done.code, "its feature extractor is missing" in done.err) == (2, True)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1, sampling_rate=16_000).save_pretrained(tmp_path)
    done = devctl("load", tmp_path, "--map", "cpu", "--audio", sound, "--json")
    assert done.code == 0, done.err
    assert inputs(done)["input_features"] == [1, 16, 100]


@pytest.mark.parametrize(
    ("width", "samples", "expected"),
    [
        (1, bytes([0, 128, 255]), [-1, 0, 127 / 128]),
        (2, struct.pack("<3h", -(2**15), 0, 2**14), [-1, 0, 0.5]),
        (3, b"\0\0\x80" + b"\0\0\0" + b"\0\0\x40", [-1, 0, 0.5]),
        (4, struct.pack("<3i", -(2**31), 0, 2**30), [-1, 0, 0.5]),
    ],
)
def test_samples_of_every_width(width, samples, expected, tmp_path):
    values, rate = read_wave(write_wave(tmp_path / "a.wav", samples, width=width))
    assert rate == 8000
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_channels_are_mixed(tmp_path):
    path = write_wave(tmp_path / "a.wav", struct.pack("<4h", 2**14, 0, 0, -(2**14)), channels=2)
    assert read_wave(path)[0].tolist() == [0.25, -0.25]


def test_other_rates():
    samples = np.linspace(0, 1, 100, dtype=np.float32)
    assert resampled(samples, 10, 10) is samples
    doubled = resampled(samples, 10, 20)
    assert (len(doubled), doubled[0], doubled[-1]) == (200, 0, 1)
    assert len(resampled(samples, 1000, 1)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file"),
        (b"", "is no .wav file of plain samples"),
        (b"RIFF\0\0\0\0WAVE", "is no .wav file of plain samples"),
        (b"ID3 music", "is no .wav file of plain samples"),
    ],
)
def test_sounds_that_are_none(content, said, tmp_path):
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_wave(path)
    with pytest.raises(UsageError, match="holds no sound"):
        read_wave(write_wave(path, b""))
