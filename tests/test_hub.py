"""Sharing policies: against a hub of this file's own, with the calls of huggingface_hub."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small

import ddice
from ddice.core.storage import write_json
from ddice.policies import hub
from ddice.policies.hub import LARGEST, pull, push

REPO = "somebody/small-pendulum"


@dataclass(frozen=True)
class CommitOperationAdd:
    path_in_repo: str
    path_or_fileobj: bytes


@dataclass
class FakeHub:
    """Repositories as {name: [files of each commit]}; every call of the package that ddice makes,
    with the arguments that it takes.
    """

    repos: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    branches: list[str | None] = field(default_factory=list)
    lied_size: int | None = None

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repos.setdefault(repo_id, [])
        self.private.setdefault(repo_id, private)

    def create_commit(
        self, repo_id: str, operations: list[Any], *, commit_message: str, revision: str | None
    ) -> Any:
        self.branches.append(revision)
        self.repos[repo_id].append({one.path_in_repo: one.path_or_fileobj for one in operations})
        oid = str(len(self.repos[repo_id]) - 1)
        return SimpleNamespace(commit_url=f"https://hub.test/{repo_id}/commit/{oid}", oid=oid)

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if repo_id not in self.repos:
            raise LookupError(f"no repository {repo_id}\n\nRequest ID: 1")
        commit = len(self.repos[repo_id]) - 1 if revision is None else int(revision)
        siblings = [
            SimpleNamespace(rfilename=name, size=self.lied_size or len(content))
            for name, content in self.repos[repo_id][commit].items()
        ]
        return SimpleNamespace(sha=str(commit), siblings=siblings)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str, local_dir: str) -> str:
        path = Path(local_dir, filename)
        path.write_bytes(self.repos[repo_id][int(revision)][filename])
        return str(path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    there = FakeHub()

    def api(*, library_name: str) -> FakeHub:
        assert library_name == "ddice"
        return there

    package = SimpleNamespace(HfApi=api, CommitOperationAdd=CommitOperationAdd)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return there


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, of networks that were never trained."""
    folder = tmp_path_factory.mktemp("run")
    recipe = small.recipe("/home/a-name/small.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = ddice.load_dataset(small.arrays(), env=small.SHORT)
    prior, backend = recipe.prior.build(data.spec, 0), recipe.backend.build(data.spec, 0)
    policy = recipe.extractor.build(data.spec, 0, prior=prior).policy(q=backend.q)
    policy.save(folder / "policy")
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))
    scores = ddice.evaluate(policy, episodes=2, progress=False)
    write_json(folder / "evaluation.json", scores.model_dump(mode="json"))
    return folder


def actions(folder: Path) -> list[Any]:
    rows = small.arrays()["observations"][:5]
    return np.asarray(ddice.load_policy(folder, device="cpu").act(rows, seed=0)).tolist()


def test_what_is_pushed_is_what_is_pulled(fake: FakeHub, trained: Path, tmp_path: Path) -> None:
    sent = push(trained, REPO, licence="mit")
    assert fake.private == {REPO: True}
    assert sent.url.endswith(f"{REPO}/commit/0")
    whole = (trained / "policy" / "policy.safetensors").read_bytes()
    assert sent.digest == hashlib.sha256(whole).hexdigest()
    there = pull(REPO, tmp_path / "mine", digest=sent.digest.upper())
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in (trained / "policy").iterdir()
    }
    assert actions(there) == actions(trained)
    assert pull(REPO, there) == there  # again is no change


def test_the_card_tells_data_protocol_scores_and_licence(fake: FakeHub, trained: Path) -> None:
    sent = push(trained / "policy", REPO, licence="cc-by-4.0", public=True, revision="second")
    assert fake.private == {REPO: False}
    assert fake.branches == ["second"]
    text = fake.repos[REPO][0]["README.md"].decode()
    header = text.split("---")[1].strip().splitlines()
    assert header[0] == 'license: "cc-by-4.0"'
    assert "library_name: ddice" in header
    scores = json.loads((trained / "evaluation.json").read_text())
    mean = np.mean(scores["scores"])
    for said in (
        "| source | small.npz |",
        "| environment | ddice-test/Pendulum-v0 |",
        "| actions | 1 numbers in [-2, 2] |",
        "| sampler | diffusion |",
        "| critic | in the file |",
        f"2 episodes, seed 0\n  score   {mean:.2f} [",
        '"kind": "piecewise_f"',
        f"ddice pull {REPO} policy --digest {sent.digest}",
        "Of the policy: cc-by-4.0.",
    ):
        assert said in text
    assert "a-name" not in text


def test_a_policy_without_a_run_says_what_is_not_known(
    fake: FakeHub, trained: Path, tmp_path: Path
) -> None:
    ddice.load_policy(trained, device="cpu").save(tmp_path / "alone")
    push(tmp_path / "alone", REPO, licence="mit")
    text = fake.repos[REPO][0]["README.md"].decode()
    assert "| source | not noted |" in text
    assert "It was not played before it was shared" in text


def test_another_file_than_the_one_that_was_meant_is_refused(
    fake: FakeHub, trained: Path, tmp_path: Path
) -> None:
    push(trained, REPO, licence="mit")
    with pytest.raises(ValueError, match=r"not the 00 that was asked for: it is another policy"):
        pull(REPO, tmp_path / "mine", digest="00")
    assert not (tmp_path / "mine").exists()


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flipped, "does not have the digest that was written with it"),
        (lambda content: content[:100], "truncated, or not safetensors"),
        (lambda content: b"\x08" + b"\0" * 7 + b"[[[[]]]]", "truncated, or not safetensors"),
        (lambda content: b"", "truncated, or not safetensors"),
    ],
    ids=["a bit", "truncated", "other JSON", "nothing"],
)
def test_damaged_and_foreign_files_are_not_kept(
    change: Callable[[bytes], bytes], message: str, fake: FakeHub, trained: Path, tmp_path: Path
) -> None:
    push(trained, REPO, licence="mit")
    files = fake.repos[REPO][0]
    files["policy.safetensors"] = change(files["policy.safetensors"])
    with pytest.raises(ValueError, match=message):
        pull(REPO, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_nothing_that_comes_with_a_policy_is_fetched(
    fake: FakeHub, trained: Path, tmp_path: Path
) -> None:
    push(trained, REPO, licence="mit")
    fake.repos[REPO][0] |= {"policy.json": b"{}", "act.py": b"import os", "../out": b""}
    there = pull(REPO, tmp_path / "mine")
    assert sorted(path.name for path in there.iterdir()) == ["policy.json", "policy.safetensors"]
    assert (there / "policy.json").read_bytes() == (trained / "policy/policy.json").read_bytes()


def test_a_size_without_bounds_is_refused_before_it_is_fetched(
    fake: FakeHub, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(trained, REPO, licence="mit")
    fake.lied_size = LARGEST + 1
    monkeypatch.setattr(FakeHub, "hf_hub_download", None)  # a call would be a TypeError
    with pytest.raises(ValueError, match=f"has {LARGEST + 1} bytes, more than the"):
        pull(REPO, tmp_path / "mine")
    fake.repos[REPO].append({"model.bin": b""})
    with pytest.raises(ValueError, match=r"holds no policy\.safetensors.*got model\.bin"):
        pull(REPO, tmp_path / "mine")


def test_a_folder_that_is_taken_stays(fake: FakeHub, trained: Path, tmp_path: Path) -> None:
    push(trained, REPO, licence="mit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else: give another folder"):
        pull(REPO, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_no_of_the_hub_comes_in_words(fake: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(
        ConnectionError,
        match=r"expected the hub to have somebody/none, got LookupError: no repository "
        r"somebody/none\. Is the name right",
    ):
        pull("somebody/none", tmp_path / "mine")


def test_without_the_package_the_extra_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(trained, REPO, licence="mit"), lambda: pull(REPO, tmp_path / "a")):
        with pytest.raises(ImportError, match=r"pip install 'ddice\[hub\]'"):
            call()


def test_the_commands(fake: FakeHub, trained: Path, run: Callable[..., Any]) -> None:
    status, out, _ = run("push", str(trained), REPO, "--licence", "mit")
    assert status == 0
    command = out.splitlines()[-1].removeprefix("fetch it: ddice ").split()
    assert command[:3] == ["pull", REPO, "--digest"]
    status, out, _ = run(*command)
    assert status == 0
    assert out.startswith("policy: small-pendulum (ddice evaluate small-pendulum")
    assert actions(Path("small-pendulum")) == actions(trained)
    status, _, errors = run("pull", "somebody/none")
    assert (status, errors.count("\n")) == (1, 1)
    status, _, errors = run("push", str(trained), REPO, "--licence", " ")
    assert (status, "expected the licence" in errors) == (1, True)


def test_the_package_has_the_calls_of_the_fake() -> None:
    package = pytest.importorskip("huggingface_hub")
    for name in ("create_repo", "create_commit", "model_info", "hf_hub_download"):
        theirs = inspect.signature(getattr(package.HfApi, name))
        ours = inspect.signature(getattr(FakeHub, name)).parameters.values()
        by_name = {one.name: None for one in ours if one.kind is one.KEYWORD_ONLY}
        by_place = [one.name for one in ours if one.kind is not one.KEYWORD_ONLY]
        # Raises TypeError for what the package does not take.
        bound = theirs.bind(*by_place, **by_name).arguments
        assert all(bound[place] == place for place in by_place)
    assert list(inspect.signature(package.CommitOperationAdd).parameters) == [
        "path_in_repo",
        "path_or_fileobj",
    ]
    assert hub._hub() is package
