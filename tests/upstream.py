"""What transformers itself answers, asked through ``from_pretrained`` with no weights."""

import contextlib
import logging
from unittest import mock

import accelerate.utils.modeling
import transformers.modeling_utils


class _Captured(BaseException):
    """Ends ``from_pretrained`` once the device map is known."""


class UpstreamError(Exception):
    """transformers raised while it planned."""


def upstream_map(model_class, config, strategy, max_memory):
    """The map that ``from_pretrained(device_map=strategy, max_memory=max_memory)`` computes.

    Raises:
        UpstreamError: it raised one of the errors that parity leaves to it.
    """
    captured = {}
    real = transformers.modeling_utils._get_device_map

    def capture(*args, **kwargs):
        try:
            captured["map"] = real(*args, **kwargs)
        except (IndexError, KeyError, ValueError) as error:
            raise UpstreamError(repr(error)) from error
        raise _Captured

    with (
        mock.patch.object(transformers.modeling_utils, "_get_device_map", capture),
        _quiet(accelerate.utils.modeling.logger),
        contextlib.suppress(_Captured),
    ):
        model_class.from_pretrained(
            None,
            config=config,
            state_dict={},
            dtype=config.dtype,
            device_map=strategy,
            max_memory=None if max_memory is None else dict(max_memory),
        )
    return dict(captured["map"])


@contextlib.contextmanager
def _quiet(logger):
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
