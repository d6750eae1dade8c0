"""Pictures and sounds from files, as a model takes them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.errors import UsageError, first_line
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.inputs import image_shape
from devctl.reading import open_file

if TYPE_CHECKING:
    import numpy as np
    import torch

_RATE = 16_000
"""Samples a second, where neither the model nor its feature extractor says."""


def image_inputs(path: Path, source: ModelSource, config: Any) -> dict[str, torch.Tensor]:
    """The picture at ``path``, through the model's image processor if it has one that works, else scaled to its size.

    Raises:
        UsageError: it can't be read, or Pillow is missing.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError(
            f"--image {path}: reading pictures needs Pillow, which is not installed", hint="pip install pillow"
        ) from None
    try:
        with open_file(path) as file, Image.open(file) as opened:
            picture = opened.convert("RGB")
    except UnidentifiedImageError:
        raise UsageError(f"--image {path} is no picture that Pillow can read") from None
    except OSError as error:
        raise UsageError(f"--image {path} can't be read: {error.strerror or first_line(error)}") from None
    processor = _own(source, "AutoImageProcessor")
    if processor is not None:
        made = processor(images=picture, return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_grid_thw") if name in made}
    return {"pixel_values": _scaled(picture, *image_shape(config)[1:])}


def _scaled(picture: Any, height: int, width: int) -> torch.Tensor:
    """A picture of that size, its values from -1 to 1."""
    import numpy as np
    import torch

    values = np.asarray(picture.resize((width, height)), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]


def audio_inputs(path: Path, source: ModelSource, config: Any, main: str) -> dict[str, torch.Tensor]:
    """The sound at ``path``, through the model's feature extractor if it has one, else as the waveform it is.

    Raises:
        UsageError: it can't be read, or the model takes a spectrum and has no feature extractor.
    """
    import torch

    samples, rate = read_wave(path)
    extractor = _own(source, "AutoFeatureExtractor")
    wanted = getattr(extractor, "sampling_rate", None) or getattr(config, "sampling_rate", None) or _RATE
    samples = resampled(samples, rate, wanted)
    if extractor is not None:
        made = extractor(samples, sampling_rate=wanted, return_tensors="pt")
        return {name: made[name] for name in ("input_values", "input_features") if name in made}
    if main == "input_features" or getattr(config, "num_mel_bins", None):
        raise UsageError(
            f"--audio {path}: this model hears spectra, and its feature extractor is missing",
            hint="give a model's folder with preprocessor_config.json, or leave --audio out",
        )
    values = torch.from_numpy(samples)
    values = (values - values.mean()) / (values.std() + 1e-7)
    return {"input_values": values[None, None] if hasattr(config, "audio_channels") else values[None]}


def read_wave(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    """The samples of a .wav file, its channels mixed to one, from -1 to 1, and how many there are a second.

    Raises:
        UsageError: it can't be read, is none, or holds no sound.
    """
    import numpy as np

    try:
        with open_file(path) as file, wave.open(file) as sound:
            width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
            data = sound.readframes(sound.getnframes())
    except OSError as error:
        raise UsageError(f"--audio {path} can't be read: {error.strerror}") from None
    except (wave.Error, EOFError) as error:
        raise UsageError(
            f"--audio {path} is no .wav file of plain samples: {first_line(error)}", hint="convert it to PCM .wav"
        ) from None
    whole = len(data) // (width * channels) * width * channels
    if not whole or not rate:
        raise UsageError(f"--audio {path} holds no sound")
    raw = np.frombuffer(data[:whole], dtype=np.uint8).reshape(-1, width)
    if width == 1:  # the only width whose samples have no sign
        values = raw[:, 0].astype(np.float32) / 128 - 1
    else:
        padded = np.zeros((len(raw), 4), dtype=np.uint8)
        padded[:, 4 - width :] = raw
        values = padded.view("<i4")[:, 0].astype(np.float32) / 2**31
    mixed: np.ndarray[Any, Any] = values.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mixed, rate


def resampled(samples: np.ndarray[Any, Any], rate: int, wanted: int) -> np.ndarray[Any, Any]:
    """The samples at another rate, on straight lines between them: enough to run a model."""
    import numpy as np

    if rate == wanted:
        return samples
    count = max(1, round(len(samples) * wanted / rate))
    made: np.ndarray[Any, Any] = np.interp(np.linspace(0, len(samples) - 1, count), np.arange(len(samples)), samples)
    return made.astype(np.float32)


def _own(source: ModelSource, auto: str) -> Any:
    """The model's own processor; None where it has none that works here."""
    import transformers

    if source.kind is SourceKind.CONFIG:
        return None
    try:
        # code that comes with it is not run: it may make anything of a file
        return getattr(transformers, auto).from_pretrained(
            source.location, revision=source.revision, trust_remote_code=False
        )
    except Exception:  # noqa: BLE001 - a processor may need any package
        return None
