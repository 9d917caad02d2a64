"""Getting a Minari dataset that is not here, or saying at once how to get or make it."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request

PROBE_SECONDS = 3.0
"""Minari's own download waits 23 s before it reports that there is no network."""

MAKEABLE = ("pointmaze-umaze", "pointmaze-medium", "pointmaze-large")
"""What `ddice data make` can generate without a network."""


def missing(dataset_id: str, cause: str) -> str:
    """One message that names the cause and every way to the dataset."""
    fitting = [
        name for name in MAKEABLE if all(word in dataset_id for word in name.split("-"))
    ] or list(MAKEABLE)
    made = " or ".join(f"`ddice data make {name}`" for name in fitting)
    where = f"not found in {os.environ.get('MINARI_DATASETS_PATH') or '~/.minari/datasets'}"
    if dataset_id.startswith("ddice/"):
        return (
            f"dataset {dataset_id!r} {where}: datasets under ddice/ are made locally, with {made}"
        )
    also = f"; {made} makes a set of the same recipe without a network" if len(fitting) == 1 else ""
    return (
        f"dataset {dataset_id!r} {where} and not downloaded ({cause}): run `minari download "
        f"{dataset_id}` on a machine with a network and copy the folder here, or set "
        f"MINARI_DATASETS_PATH to where it lies{also}"
    )


def why_not(dataset_id: str) -> str | None:
    """`missing`, where a dataset cannot be downloaded; None where that may be tried."""
    if dataset_id.startswith("ddice/"):
        return missing(dataset_id, "never published")
    host, port = _server()
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return missing(dataset_id, "HF_HUB_OFFLINE is set")
    if not _reachable(host, port):
        return missing(dataset_id, f"no network: {host} cannot be reached")
    return None


def obtain(dataset_id: str) -> None:
    """Download a published dataset into the local Minari folder. Raises FileNotFoundError with
    `missing` when that is impossible.
    """
    cause = why_not(dataset_id)
    if cause is not None:
        raise FileNotFoundError(cause)
    import minari

    try:
        minari.download_dataset(dataset_id)
    # ImportError, httpx errors, ConnectionError, ValueError: which one depends on the remote and
    # its client
    except Exception as error:
        raise FileNotFoundError(missing(dataset_id, f"{type(error).__name__}: {error}")) from error


def _server() -> tuple[str, int]:
    """The machine that a download would connect to first: a proxy if there is one, else the
    remote of Minari.
    """
    google = os.environ.get("MINARI_REMOTE", "hf://").startswith("gcp://")
    target = (
        "https://storage.googleapis.com"
        if google
        else os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    )
    proxy = urllib.request.getproxies().get("https") or urllib.request.getproxies().get("all")
    address = urllib.parse.urlsplit(
        proxy if proxy and "://" in proxy else f"http://{proxy}" if proxy else target
    )
    return address.hostname or "", address.port or (80 if address.scheme == "http" else 443)


def _reachable(host: str, port: int) -> bool:
    found: list[bool] = []

    def probe() -> None:
        try:
            with socket.create_connection((host, port), timeout=PROBE_SECONDS):
                found.append(True)
        except OSError:
            found.append(False)

    # In a thread, because a name look-up without network can take longer than any socket timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(found and found[0])
