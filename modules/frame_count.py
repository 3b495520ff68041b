"""A clear refusal for methods that have parameters for each frame of a clip."""


def check_frames(frames: int, max_frames: int) -> None:
    """Raise ValueError if a clip does not have the `max_frames` frames that the model was made for."""
    if frames != max_frames:
        raise ValueError(f"the clip has {frames} frames, and this model was made for max_frames={max_frames}")
