"""Weights of hub repositories: from the cache on this disk, or downloaded where that is allowed."""

from pathlib import Path

from dfkd_lib.core import WorkbenchError

WANTED = "a name of the workbench or of timm, a .safetensors file, a folder in transformers' format, or owner/name on the hub"


class WeightsMissing(WorkbenchError):
    """Pretrained weights are not on disk, and nobody allowed a download."""


def fetch(repository: str, download: bool, name: str) -> Path:
    """The folder with the weights of "owner/name" or "owner/name@revision": from the local cache, or downloaded if allowed.

    Raises:
        WeightsMissing: if they are not there, or the download fails.
        WorkbenchError: if that is no such name.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    problem = "a repository without model.safetensors, or one not wholly fetched"
    try:
        found = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=["*.json", "model.safetensors"],
            local_files_only=not download,
        )
        if (Path(found) / "model.safetensors").is_file():
            return Path(found)
    except HFValidationError as error:
        raise WorkbenchError(
            "no such model", got=name, expected=WANTED, where=str(error)[:200], fix="check the name"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        problem = "not in the local cache"
        if download:
            problem = f"the download failed: {' '.join(str(error).split())[:200]}"
    fix = "check name and network" if download else "allow the download (download=True)"
    raise WeightsMissing(
        f"pretrained weights of {name} are not on this disk",
        got=problem,
        expected=f"model.safetensors of hub repository {repository}",
        fix=f"{fix}, or give a .safetensors file as weights",
    )
