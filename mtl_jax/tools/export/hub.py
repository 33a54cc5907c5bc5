"""Exported folders on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from mtl_jax.core.errors import UserError, first_line


def refuse_name(repository: str) -> None:
    """Refuses what no repository can be called.

    Raises:
        UserError: It is such a name.
    """
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(repository)
    except errors.HFValidationError as error:
        raise UserError(
            f"--push-to-hub {repository!r} can't be the name of a repository "
            f"({first_line(error)}): write OWNER/NAME"
        ) from error


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder, in a repository that is made where there is none.

    Args:
        folder: The folder.
        repository: ``OWNER/NAME``, or ``NAME`` of the token's owner.
        private: Whether one that is made now is private.

    Returns:
        Where it is.

    Raises:
        UserError: The hub can't be reached, or refuses; the folder stays.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Export of mtl_jax"
        )
    except Exception as error:  # whichever library carries the requests
        raise UserError(
            f"{folder} is written, and can't be pushed to {repository} ({first_line(error)}): log "
            f"in with `hf auth login`, then `hf upload {repository} {folder}`"
        ) from error
    return str(made)
