"""Films: recorded episodes are played again in an environment that renders, with the same reset
and the same actions.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddice.core.storage import write_bytes
from ddice.data.allowed import trust_in
from ddice.data.environment import close_environment, make_env, record_of
from ddice.data.spec import EnvRecord
from ddice.pictures.recording import Recording

FPS, MAX_FRAMES, WIDTH = 20, 200, 320
MAX_BYTES = 5_000_000
SHRINK = 0.8  # of width and height, until the file is small enough
LAST_FRAME = 1000  # milliseconds that the last frame of an episode stays
CAPTION = 16  # pixels below the picture
REPLAY_TOLERANCE = 1e-6
DISTANCE = (
    1.3  # of the camera above a maze, in its longer sides: MuJoCo's field of view is 45 degrees
)


@dataclass(frozen=True)
class Film:
    """frames (H, W, 3) uint8 of equal size, with captions; milliseconds: how long each is shown;
    episode: which it belongs to.
    """

    frames: tuple[np.ndarray, ...]
    milliseconds: tuple[int, ...]
    episode: tuple[int, ...]


def rendering(env: Any) -> EnvRecord:
    """The record of an environment (an id, an `EnvSpec`, a record) that renders into arrays."""
    fields = json.loads(record_of(env).spec)
    return EnvRecord(
        spec=json.dumps(
            {**fields, "kwargs": {**(fields.get("kwargs") or {}), "render_mode": "rgb_array"}}
        )
    )


@contextmanager
def _off_screen() -> Iterator[None]:
    """MuJoCo renders without a display through EGL, which it does not choose by itself; a choice
    of the user's stays.
    """
    choose = (
        "MUJOCO_GL" not in os.environ and sys.platform == "linux" and not os.environ.get("DISPLAY")
    )
    if choose:
        os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        if choose:
            del os.environ["MUJOCO_GL"]


def require_rendering(env: Any, trust_env: Sequence[str] = ()) -> None:
    """Render one frame and throw it away. Raises OSError, with how to mend it, where that is
    impossible; ImportError without pillow, ValueError where the environment may not be made.
    """
    _pillow()
    record = rendering(env)
    # What is missing or may not be made is said in words of its own.
    with _off_screen():
        made = make_env(record, trust_in(env, trust_env))
    try:
        with _off_screen():
            made.reset(seed=0)
            frame: Any = made.render()
    except Exception as error:  # drivers raise whatever they like
        raise OSError(
            f"cannot render {record.id}: {type(error).__name__}: {error}. MuJoCo needs OpenGL: "
            "without a display set MUJOCO_GL=egl (Debian: apt install libegl1 libgl1) or "
            "MUJOCO_GL=osmesa (apt install libosmesa6); classic control and Box2D need pygame"
        ) from error
    finally:
        close_environment(made)
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise OSError(
            f"expected {record.id} to render arrays (H, W, 3), got {type(frame).__name__}: it "
            "cannot be filmed"
        )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("films need pillow: pip install 'ddice[plots]'") from error
    return Image


def make_film(
    env: Any,
    recordings: Sequence[Recording],
    *,
    fps: int = FPS,
    max_frames: int = MAX_FRAMES,
    width: int = WIDTH,
    trust_env: Sequence[str] = (),
) -> Film:
    """Plays recorded episodes again and keeps at most about `max_frames` frames, evenly spaced and
    at most `width` pixels wide.

    The film runs in real time where the environment states its own frames per second and
    `max_frames` is enough, else faster. Raises OSError where nothing can be rendered, ValueError
    when an episode comes out differently: the environment is not deterministic.
    """
    if fps < 1 or max_frames < 2 or width < 32:
        raise ValueError(
            f"expected fps >= 1, max_frames >= 2 and width >= 32, got {fps}, {max_frames} and "
            f"{width}"
        )
    require_rendering(env, trust_env)
    made = make_env(rendering(env), trust_in(env, trust_env))
    _look_from_above(made)
    try:
        own_fps = float(made.metadata.get("render_fps") or fps)
        steps = sum(len(recording.actions) for recording in recordings)
        every = max(1, round(own_fps / fps), -(-steps // max_frames))
        frames, times, episodes = [], [], []
        with _off_screen():
            for episode, recording in enumerate(recordings):
                for step, total, frame in _replay(made, recording, every):
                    text = f"episode {episode}   step {step}   return {total:.4g}"
                    frames.append(_captioned(frame, text, width))
                    times.append(round(1000 / fps) if step < len(recording.actions) else LAST_FRAME)
                    episodes.append(episode)
    finally:
        close_environment(made)
    return Film(tuple(frames), tuple(times), tuple(episodes))


def _look_from_above(made: Any) -> None:
    """A maze's own camera looks over its walls, which hide what is behind them, and sees half of
    a large maze.
    """
    whole = made.unwrapped
    maze: Any = getattr(whole, "maze", None)
    if hasattr(maze, "maze_map"):
        distance = DISTANCE * max(maze.map_length, maze.map_width) * maze.maze_size_scaling
        above = {"elevation": -90.0, "azimuth": 90.0, "distance": distance, "lookat": np.zeros(3)}
        for part in (whole, *vars(whole).values()):
            renderer = getattr(part, "mujoco_renderer", None)
            if renderer is not None:
                renderer.default_cam_config = {**(renderer.default_cam_config or {}), **above}


def _replay(made: Any, recording: Recording, every: int) -> Iterator[tuple[int, float, np.ndarray]]:
    """Step, return so far and picture: at the start, after every `every` steps, and at the end."""
    _require_same(made.reset(seed=recording.reset_seed)[0], recording.observations[0], 0)
    yield 0, 0.0, made.render()
    total, length = 0.0, len(recording.actions)
    for step, (action, reward) in enumerate(
        zip(recording.actions, recording.rewards, strict=True), start=1
    ):
        observation, again, *_ = made.step(action)
        _require_same(
            {"observation": observation, "reward": again},
            {"observation": recording.observations[step], "reward": reward},
            step,
        )
        total += float(reward)
        if step % every == 0 or step == length:
            yield step, total, made.render()


def _require_same(played: Any, recorded: Any, step: int) -> None:
    if isinstance(recorded, Mapping):
        for key, value in recorded.items():
            _require_same(played[key], value, step)
    elif not np.allclose(played, recorded, REPLAY_TOLERANCE, REPLAY_TOLERANCE):
        raise ValueError(
            f"expected {recorded} again at step {step}, got {played}: is the environment not "
            "deterministic, or another one?"
        )


def _captioned(frame: np.ndarray, text: str, width: int) -> np.ndarray:
    """The frame, at most `width` wide, with a line of text below."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(np.ascontiguousarray(frame[..., :3]))
    if picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.BOX
        )
    whole = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    whole.paste(picture)
    ImageDraw.Draw(whole).text((4, picture.height + 2), text, fill="black")
    return np.asarray(whole)


def encode_gif(film: Film, max_bytes: int = MAX_BYTES) -> bytes:
    """The film as an endless GIF of at most `max_bytes`: width and height shrink until it fits."""
    image = _pillow()
    scale = 1.0
    while True:
        pictures = [image.fromarray(frame) for frame in film.frames]
        if scale < 1:
            size = (
                max(1, round(pictures[0].width * scale)),
                max(1, round(pictures[0].height * scale)),
            )
            pictures = [picture.resize(size) for picture in pictures]
        file = io.BytesIO()
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=list(film.milliseconds),
            loop=0,
            optimize=True,
        )
        if file.tell() <= max_bytes or min(pictures[0].size) < 32:
            return file.getvalue()
        scale *= SHRINK


def write_gif(film: Film, path: str | Path, max_bytes: int = MAX_BYTES) -> None:
    """`encode_gif` into a file."""
    write_bytes(Path(path), encode_gif(film, max_bytes))


def strip(film: Film, columns: int = 6) -> np.ndarray:
    """A row for each episode: `columns` frames, evenly spaced from the first to the last; (H, W,
    3).
    """
    rows = []
    for episode in sorted(set(film.episode)):
        own = [
            frame
            for frame, belongs in zip(film.frames, film.episode, strict=True)
            if belongs == episode
        ]
        rows.append(
            np.concatenate(
                [own[i] for i in np.linspace(0, len(own) - 1, columns).round().astype(int)], axis=1
            )
        )
    return np.concatenate(rows, axis=0)


def write_strip(film: Film, path: str | Path, columns: int = 6) -> None:
    """`strip` as a PNG."""
    file = io.BytesIO()
    _pillow().fromarray(strip(film, columns)).save(file, "PNG", optimize=True)
    write_bytes(Path(path), file.getvalue())
