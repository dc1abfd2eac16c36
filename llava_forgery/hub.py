"""Folders on the hub: names given by the user are resolved to folders, and folders are uploaded.

In both directions only the files of our and transformers' formats are transferred: safetensors,
JSON and text, never a pickle.
"""

import logging
import tempfile
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any

from llava_forgery.optional import lazy

huggingface_hub = lazy("huggingface_hub")

logger = logging.getLogger(__name__)

# Weights, settings, tokenizers (including sentencepiece), templates, cards.
_TAKEN = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.md"]
# The code of exported checkpoints, which only imports this package.
_SENT = [*_TAKEN, "modeling_llava_forgery.py", "processing_llava_forgery.py"]


def is_hub_name(name: str) -> bool:
    """Whether a name has the hub's form, ``owner/name``."""
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except huggingface_hub.errors.HFValidationError:
        return False
    return "/" in name and not name.startswith(".")


def local_folder(name: str | PathLike, *, token: str | bool | None = None) -> Path:
    """The folder with a name given by the user: a local one, or else that of the hub.

    Names in files are resolved inside :func:`llava_forgery.downloads.named_by`, which only uses the
    cache.

    Args:
        name: A path; or ``owner/name`` or ``owner/name@revision`` of the hub, where a revision is a
            branch, a tag or a commit.
        token: Token of the hub; by default the one from ``hf auth login`` or $HF_TOKEN.

    Returns:
        The local folder or that in the hub's cache; the unchanged path if it is neither.

    Raises:
        FileNotFoundError: There is no such folder, and the hub has none or cannot be reached.
    """
    path = Path(name)
    repo_id, _, revision = path.as_posix().partition("@")
    if path.exists() or not is_hub_name(repo_id):
        return path
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, revision=revision or None, allow_patterns=_TAKEN, token=token
            )
        )
    except (
        OSError,
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.OfflineModeIsEnabled,
    ) as error:
        raise FileNotFoundError(
            f"there is no folder {name}, and the hub has none of that name "
            f"({str(error).strip().splitlines()[0]}); give a folder, or owner/name[@revision] of a "
            "repository that you may read (hf auth login)"
        ) from error


def push_folder(
    folder: str | PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder to the hub as one commit; the repository is created if it is missing.

    Args:
        folder: Folder of an adapter, a detector, a pseudo-word or an exported checkpoint.
        repo_id: Repository, ``owner/name``.
        revision: Branch, created if it is missing; None for the default branch.
        private: Whether a new repository is private; None for the owner's default.
        token: As for :func:`local_folder`; it must allow writing.
        commit_message: Message of the commit.

    Returns:
        The URL of the commit.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds nothing to upload, or the name does not have the hub's form.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to upload")
    if not is_hub_name(repo_id):
        raise ValueError(f"expected owner/name as the repository, got {repo_id!r}")
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    left = sorted(f for f in files if not any(fnmatch(f, pattern) for pattern in _SENT))
    if len(left) == len(files):
        raise ValueError(f"{folder} holds no safetensors, JSON or text that could be uploaded")
    if left:
        logger.warning("not uploaded from %s: %s", folder, ", ".join(left))
    api = huggingface_hub.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        allow_patterns=_SENT,
        commit_message=commit_message or f"Upload {folder.name} with llava-forgery",
    )
    return commit.commit_url


class Pushable:
    """``push_to_hub`` for classes with ``save_pretrained``."""

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save and upload as one commit.

        Args:
            repo_id: Repository, ``owner/name``.
            options: Options of :func:`push_folder`.

        Returns:
            The URL of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / repo_id.rsplit("/", 1)[-1]
            self.save_pretrained(saved)
            return push_folder(saved, repo_id, **options)
