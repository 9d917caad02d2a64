"""Policies on a model hub, by the package huggingface_hub (`pip install 'ddice[hub]'`). Nothing
here is called by anything else of ddice.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ddice.core.reading import read_bytes
from ddice.policies.card import card, read_recipe_and_scores
from ddice.policies.saved import SHOWN, WHOLE, policy_folder, read_policy, write_whole

LARGEST = 1 << 31  # bytes of a policy that is pulled; networks of these methods take megabytes
CARD = "README.md"


class Pushed(NamedTuple):
    """Where a policy went: the address of the commit, its id, and the SHA-256 of
    `policy.safetensors`, by which `pull` knows it again.
    """

    url: str
    revision: str
    digest: str


def push(
    path: str | Path,
    repo: str,
    *,
    licence: str,
    public: bool = False,
    revision: str | None = None,
) -> Pushed:
    """Send a policy to the hub as `repo` ("name/of-the-policy"), with a card; the repository is
    made, private unless `public`, where it is not there.

    path: the folder of the policy or of its run, whose recipe and scores go into the card. licence:
    of the policy, as the hub names it, such as "mit". revision: a branch that is there. Who you are
    is huggingface_hub's matter (`hf auth login`). Raises ImportError without that package,
    FileNotFoundError and ValueError for what is no whole policy, ConnectionError where the hub says
    no.
    """
    if not licence.strip():
        raise ValueError('expected the licence of the policy, such as "mit", got none')
    folder = policy_folder(path)
    saved = read_policy(folder)
    content = read_bytes(folder / WHOLE, LARGEST)
    recipe, scores = read_recipe_and_scores(folder.parent)
    digest = hashlib.sha256(content).hexdigest()
    text = card(saved, repo, licence, recipe=recipe, scores=scores, digest=digest)
    files = {WHOLE: content, SHOWN: saved.shown(), CARD: text.encode()}
    hub = _hub()
    with _asked(f"take {repo}"):
        api = hub.HfApi(library_name="ddice")
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.create_commit(
            repo,
            [hub.CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message="A policy of ddice",
            revision=revision,
        )
        return Pushed(str(commit.commit_url), str(commit.oid), digest)


def pull(
    repo: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    digest: str | None = None,
) -> Path:
    """Fetch a policy from the hub into `folder`, which `load_policy` reads; nothing that it holds
    is run or imported, and only `policy.safetensors` is read.

    revision: a branch, a tag or a commit. digest: the SHA-256 that the file must have, as `push`
    said it: without it the file is known to be whole, but not whose it is. A folder that holds
    another policy is left as it is. Raises ImportError without huggingface_hub, ConnectionError
    where the hub says no, ValueError for a file that is too large, damaged, foreign or not the one
    that was asked for, and FileExistsError for a folder that is taken.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as scratch:
        with _asked(f"have {repo}"):
            api = hub.HfApi(library_name="ddice")
            # the commit first, so that what is looked at is what comes
            about = api.model_info(repo, revision=revision, files_metadata=True)
            sizes = {one.rfilename: one.size for one in about.siblings or ()}
        _check_size(repo, sizes)
        with _asked(f"give {WHOLE} of {repo}"):
            there = api.hf_hub_download(repo, WHOLE, revision=about.sha, local_dir=scratch)
        content = read_bytes(there, LARGEST)
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and digest.lower() != found:
        raise ValueError(
            f"{WHOLE} of {repo} has the SHA-256 {found}, not the {digest} that was asked for: it "
            "is another policy; nothing was kept"
        )
    return _keep(Path(folder), repo, content)


def _check_size(repo: str, sizes: dict[str, int | None]) -> None:
    """Raise ValueError for a repository without a policy, or with one of absurd size."""
    if WHOLE not in sizes:
        raise ValueError(
            f"{repo} holds no {WHOLE}: expected a policy that ddice push sent, got "
            f"{', '.join(sorted(sizes)[:10]) or 'no files'}"
        )
    size = sizes[WHOLE]
    if size is None or size > LARGEST:
        raise ValueError(
            f"{WHOLE} of {repo} has {size or 'unknown'} bytes, more than the {LARGEST:,} that are "
            "fetched"
        )


def _keep(folder: Path, repo: str, content: bytes) -> Path:
    whole = folder / WHOLE
    if whole.exists() and read_bytes(whole, LARGEST) == content:
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there and holds something else: give another folder")
    try:
        write_whole(folder, content)
    except ValueError as error:
        raise ValueError(
            f"{WHOLE} of {repo} is no policy that this version of ddice reads: {error}"
        ) from error
    return folder


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"sharing needs the package huggingface_hub ({error}): pip install 'ddice[hub]'"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _asked(what: str) -> Iterator[None]:
    """Raise ConnectionError for whatever the hub or its package raises: their errors have no root
    in common.
    """
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise ConnectionError(
            f"expected the hub to {what}, got {type(error).__name__}: {lines[0].rstrip('.')}. Is "
            "the name right, is there a network, and are you logged in (hf auth login)?"
        ) from error
