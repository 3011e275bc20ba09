"""Where a checkpoint comes from: this machine, or the Hugging Face hub.

`huggingface_hub` is imported where it is used, because it reads its environment variables
when it is imported.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, TypedDict, Unpack

from .errors import CheckpointError
from .formats import FORMATS, shards


# A name that ends like this is a file's, not that of a model on the hub.
_SUFFIXES = (".json", *(suffix for format_ in FORMATS for suffix in format_.suffixes))


class HubOptions(TypedDict, total=False):
    """The options of `huggingface_hub.hf_hub_download` for a model on the Hugging Face hub.
    For files on this machine they have no effect.

    **Fields:**

    - `revision`: the branch, tag or commit; `main` by default.
    - `token`: the hub's token; by default that of `HF_TOKEN` or of `hf auth login`.
    - `cache_dir`: the cache; that of `huggingface_hub` by default.
    - `local_files_only`: whether to use only the cache, as `HF_HUB_OFFLINE` does.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


def split_options(options: Mapping[str, Any]) -> tuple[HubOptions, dict[str, Any]]:
    """The keyword arguments that are for the hub, and the others."""
    hub = {k: v for k, v in options.items() if k in HubOptions.__annotations__}
    others = {k: v for k, v in options.items() if k not in hub}
    return cast("HubOptions", hub), others


def locate(path: str | Path, *, weights: bool, **hub: Unpack[HubOptions]) -> Path:
    """The directory or file at `path`, or a directory with the model of that name.

    The hub provides `config.json`, `generation_config.json` if there is one, and weights in
    the first of the `FORMATS` that it has. All are of the same commit, and only what the
    cache of `huggingface_hub` lacks is downloaded.

    **Arguments:**

    - `path`: a path on this machine or, as a string, the name of a model on the hub.
    - `weights`: whether weights are wanted.
    - `hub`: see `HubOptions`.

    **Raises** `TypeError` if there is no such option; `CheckpointError` if there is nothing
    of that name, or if not all of it can be downloaded.
    """
    if unknown := split_options(hub)[1]:
        raise TypeError(f"from_pretrained has no argument {', '.join(unknown)}.")
    if os.path.exists(path):  # noqa: PTH110  # a Path's own raises if the name is too long
        return Path(path)
    if isinstance(path, Path) or not _may_be_on_hub(path):
        raise CheckpointError(
            f"There is no file or directory {str(path)!r}. A model on the Hugging Face hub "
            "has a name like 'facebook/bart-base'."
        )
    from huggingface_hub import is_offline_mode

    offline = hub.get("local_files_only", False) or is_offline_mode()
    model = _HubModel(path, {**hub, "local_files_only": offline})
    directory = model.get("config.json").parent
    # Its name is the commit. Another may be pushed before the last file is downloaded.
    pinned: HubOptions = {"revision": directory.name, "cache_dir": directory.parents[2]}
    model = _HubModel(path, {**model.options, **pinned})
    model.find("generation_config.json")
    if weights:
        model.get_weights()
    return directory


def _may_be_on_hub(path: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not path.endswith(_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class _HubModel:
    """A model on the hub; with `local_files_only`, what the cache has of it."""

    name: str
    options: HubOptions

    def __str__(self) -> str:
        return f"{self.name} (revision {self.options.get('revision') or 'main'})"

    @property
    def offline(self) -> bool:
        return self.options.get("local_files_only", False)

    def get_weights(self) -> None:
        """Gets the file or the shards of the first format that the model has.

        **Raises** `CheckpointError` if it has none, or if they cannot be downloaded.
        """
        for format_ in FORMATS:
            if self.find(format_.weights):
                return
            if index := self.find(format_.index):
                for shard in shards(index):
                    self.get(shard)
                return
        place = "The cache" if self.offline else "The Hugging Face hub"
        names = ", ".join(format_.weights for format_ in FORMATS)
        raise CheckpointError(
            f"{place} has no weights of {self}: none of {names}, and no index of shards."
        )

    def find(self, file: str) -> Path | None:
        """The file, or `None` if the model has no such file; `revision` must be a commit.

        **Raises** `CheckpointError` if that cannot be found out.
        """
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        cached = try_to_load_from_cache(
            self.name,
            file,
            cache_dir=self.options.get("cache_dir"),
            revision=self.options.get("revision"),
        )
        if not isinstance(cached, str | None):  # known not to exist
            return None
        absence = LocalEntryNotFoundError if self.offline else RemoteEntryNotFoundError
        try:
            return self.get(file)
        except CheckpointError as error:
            if isinstance(error.__cause__, absence):
                return None
            raise

    def get(self, file: str) -> Path:
        """The file. **Raises** `CheckpointError`, from the error of `huggingface_hub`."""
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, file, **self.options))
        except Exception as error:
            raise CheckpointError(
                f"Cannot get {file} of {self} from the Hugging Face hub: "
                f"{self._explain(error)}"
            ) from error

    def _explain(self, error: BaseException) -> str:
        """What happened, and what the user can do."""
        from huggingface_hub import errors

        text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(" .:") + "."
        match error:
            case errors.GatedRepoError():
                text = "access is granted on its page. Pass the token of who has it."
            case errors.RepositoryNotFoundError():
                text = (
                    "there is no such model, or it is private. Check the name, or pass the "
                    "token of who may read it."
                )
            case errors.RevisionNotFoundError():
                text = "it has no such revision."
            case errors.RemoteEntryNotFoundError():
                text = "it has no such file."
            case errors.LocalEntryNotFoundError() if self.offline:
                text = (
                    "it is not in the cache. Let it be downloaded, without HF_HUB_OFFLINE "
                    "and local_files_only."
                )
            case errors.LocalEntryNotFoundError() if error.__cause__:
                text = self._explain(error.__cause__)
            case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
                text += " Pass the token of who may read it."
            case errors.LocalTokenNotFoundError():
                pass
            case _:
                text += " Check the connection and the disk, and try again."
        return text
