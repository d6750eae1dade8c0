"""Files of a model on the hub: the config, and the weights when it comes to loading; every failure in our words."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
from pathlib import Path

from devctl.errors import DevctlError, ModelError, first_line
from devctl.models.files.index import MOST_INDEX, shards
from devctl.models.files.watch import watched
from devctl.units import format_bytes

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
MOST_CONFIG = 64 * 2**20
"""Bytes of a config, of any kind; the largest that there are have some megabytes."""

_SAID = 200
"""Characters of what the hub says that a message repeats."""


class NoSuchFileError(ModelError):
    """The model is there, and has no such file."""


def fetch(model: str, name: str, revision: str | None) -> Path:
    """The file ``name`` of ``model`` on this machine, downloaded unless it is in the cache.

    huggingface_hub resumes a download that is cut, a few times. What it has by then it keeps for the next time, under a
    name that is never taken for the file.

    Raises:
        NoSuchFileError: the model has no such file.
        ModelError: there is no such id or revision, it is gated, the hub can't be reached, fails, or breaks off.
    """
    from huggingface_hub import hf_hub_download

    most = MOST_INDEX if name.endswith(".index.json") else MOST_CONFIG if name.endswith(".json") else None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its tries
    try:
        with watched(f"{name} of {model}", most):
            return Path(hf_hub_download(model, name, revision=revision))
    except ModelError:
        raise
    except Exception as error:  # besides its own, those of the HTTP library that it happens to use
        raise explained(error, model, name, revision) from error


def fetch_if_there(model: str, name: str, revision: str | None) -> Path | None:
    """The same, or None where the model has no such file. What the cache knows of a commit is not asked of the hub.

    Offline, what the cache does not know is taken not to be there.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    known = try_to_load_from_cache(model, name, revision=revision)
    if isinstance(known, str):
        return Path(known)
    if known is not None or is_offline_mode():
        return None
    try:
        return fetch(model, name, revision)
    except NoSuchFileError:
        return None


def in_cache(model: str, name: str, revision: str | None) -> Path | None:
    """The file ``name`` of ``model`` where it is in the cache; None where it is not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        known = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError:
        return None
    return Path(known) if isinstance(known, str) else None


def fetch_weights(model: str, revision: str | None) -> Path:
    """Download the weights that ``from_pretrained`` would read first, unless they are in the cache.

    One file after the other, since downloads on threads can't be interrupted.

    Returns:
        The folder they are in.

    Raises:
        ModelError: there are none, the disk is too small for them, or one of ``fetch``.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    names: tuple[str, ...] = ()
    for name in _first_in_cache(
        model, revision, (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    ):
        with contextlib.suppress(NoSuchFileError):
            if name.endswith(".index.json"):
                names = shards(fetch(model, name, revision))
            else:
                _require_space(model, (name,), revision)
                fetch(model, name, revision)
                names = (name,)
            break
    else:
        raise ModelError(
            f"{model} has no weights to load",
            hint="give a model that has, or try the placement with --load-format dummy",
        )
    _require_space(model, names, revision)
    for name in names:
        path = fetch(model, name, revision)
    with contextlib.suppress(ModelError):  # nothing depends on it
        fetch(model, GENERATION_CONFIG, revision)
    folder = path
    for _ in Path(names[-1]).parts:
        folder = folder.parent
    return folder


def _first_in_cache(model: str, revision: str | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``; offline, from the first on that is in the cache, since nothing says whether those before it exist."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    if not is_offline_mode():
        return names
    there = [isinstance(try_to_load_from_cache(model, name, revision=revision), str) for name in names]
    return names[there.index(True) :] if any(there) else names


def _require_space(model: str, names: tuple[str, ...], revision: str | None) -> None:
    """Refuse to begin a download that does not fit the cache's disk."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    needed = 0
    for name in names:
        if isinstance(try_to_load_from_cache(model, name, revision=revision), str):
            continue
        with contextlib.suppress(Exception):  # the download tells what is wrong
            url = hf_hub_url(model, name, revision=revision)
            needed += get_hf_file_metadata(url).size or 0
    cache = Path(HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ModelError(
            f"{model} has {format_bytes(needed)} of weights to download, the disk of {cache} has "
            f"{format_bytes(free)} free",
            hint="set HF_HUB_CACHE to a folder on a larger disk",
        )


def explained(error: Exception, model: str, name: str, revision: str | None) -> DevctlError:
    """What a failed download of the file ``name`` of ``model`` means."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    said = first_line(error)[:_SAID]
    facts = {
        HFValidationError: (
            f"{model!r} is neither a file or folder here nor a model id",
            "a model id is written org/name",
        ),
        GatedRepoError: (
            f"{model} is gated and this token has no access",
            "accept its licence on the model's page, then `hf auth login` or set HF_TOKEN",
        ),
        RepositoryNotFoundError: (
            f"{model} is neither a file or folder here nor a model on the hub that you can see",
            "check the spelling; for a private model `hf auth login` or set HF_TOKEN",
        ),
        RevisionNotFoundError: (f"{model} has no revision {revision!r}", "give a branch, a tag or a commit"),
    }
    for kind, (message, hint) in facts.items():
        if isinstance(error, kind):
            return ModelError(message, hint=hint)
    if isinstance(error, LocalEntryNotFoundError):
        return _unreachable(error, model, name)
    if isinstance(error, EntryNotFoundError):
        return NoSuchFileError(f"{model} has no {name}", hint="is it a transformers model?")
    if isinstance(error, HfHubHTTPError):
        return _refused(error, model, name)
    return _broken_off(error, model, name, said)


def _broken_off(error: Exception, model: str, name: str, said: str) -> ModelError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"the disk is full: {name} of {model} can't be kept in the cache",
            hint="free some space, or set HF_HUB_CACHE to a folder on a larger disk",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return ModelError(f"cannot keep {name} of {model} in the cache: {error}", hint="HF_HUB_CACHE names another")
    return ModelError(
        f"the download of {name} of {model} broke off: {said}",
        hint="run it again: what is there already is not downloaded twice",
    )


def _refused(error: Exception, model: str, name: str) -> ModelError:
    """The hub answered with an error."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = first_line(error)[:_SAID]
    if status == 429:
        return ModelError(
            f"the hub takes no more requests for now (429), asked for {name} of {model}",
            hint="wait some minutes; with a token (`hf auth login` or HF_TOKEN) it takes more",
        )
    if status in (401, 403):
        return ModelError(
            f"the hub refuses {name} of {model} ({status})",
            hint="is the token valid, and may it read this model? `hf auth login`, or set HF_TOKEN",
        )
    return ModelError(f"the hub answered for {name} of {model}: {said}", hint="try again later")


def _unreachable(error: BaseException, model: str, name: str) -> ModelError:
    from huggingface_hub.constants import is_offline_mode

    there, it = (model, "its config") if name == CONFIG else (f"{name} of {model}", "it")
    if is_offline_mode():
        return ModelError(
            f"{there} is not in the cache, and HF_HUB_OFFLINE=1 forbids to fetch {it}",
            hint="unset HF_HUB_OFFLINE, or give a folder or a config file",
        )
    cause = error.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, Exception) and status is not None and status < 500:
        return _refused(cause, model, name)
    return ModelError(
        f"{there} is not in the cache, and the hub can't be reached: {first_line(cause or error)[:_SAID]}",
        hint="check the network and HF_ENDPOINT, or give a folder or a config file",
    )


def files_of(model: str, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """The commit that ``revision`` of ``model`` is, and the names of its files.

    Raises:
        ModelError: there is no such id or revision, it is gated, or the hub can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import ENDPOINT

    _require_online(model, "the list of files")
    try:
        with watched(f"the list of files of {model}", MOST_INDEX):
            found = HfApi(endpoint=ENDPOINT).model_info(model, revision=revision)
    except ModelError:
        raise
    except Exception as error:  # besides its own, those of the HTTP library that it happens to use
        raise explained(error, model, "the list of files", revision) from error
    commit = found.sha or revision or "main"
    return commit, tuple(each.rfilename for each in found.siblings or ())


def read_range(model: str, name: str, revision: str, first: int, count: int) -> tuple[bytes, int]:
    """``count`` bytes of the file ``name`` of ``model`` from ``first`` on, fewer at its end, and the size of the whole.

    Raises:
        ModelError: there is no such file, the hub can't be reached, is slow, or sends the whole file.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    _require_online(model, name)
    headers = {**build_hf_headers(), "Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}
    try:
        with watched(f"{name} of {model}", count):
            response = get_session().get(hf_hub_url(model, name, revision=revision), headers=headers)
            hf_raise_for_status(response)
    except ModelError:
        raise
    except Exception as error:  # besides its own, those of the HTTP library that it happens to use
        raise explained(error, model, name, revision) from error
    told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range") or "")
    whole: bytes = response.content
    if told is None:
        if first == 0 and response.status_code == 200:  # a file that is no longer than what was asked for
            return whole, len(whole)
        raise ModelError(
            f"the hub does not send parts of {name} of {model}", hint="download the file, and give its path"
        )
    if int(told[1]) != first or len(whole) > count:
        raise ModelError(f"the hub sends another part of {name} of {model} than was asked for", hint="try again later")
    return whole, int(told[2])


def _require_online(model: str, name: str) -> None:
    """Refuse what the cache never has where the hub may not be asked.

    Raises:
        ModelError: it may not.
    """
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise ModelError(
            f"{name} of {model} is asked of the hub, and HF_HUB_OFFLINE=1 forbids it",
            hint="unset HF_HUB_OFFLINE, or give the path of a file",
        )
