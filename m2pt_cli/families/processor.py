"""The processor of a base: tokenizer, image processor, and number of image tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from m2pt_cli.errors import SettingsError, UnavailableError
from m2pt_cli.families.family import LLAVA, family_of
from m2pt_cli.families.geometry import Geometry


def load_processor(folder: Path, geometry: Geometry) -> Any:
    """Load the processor of a base folder and make it agree with the base's config.

    Images are processed with PIL even if torchvision is installed, whose pixels, and with them scores, differ slightly.

    Raises:
        UnavailableError: the folder's tokenizer or processor can't be used.
    """
    import transformers

    family = family_of(geometry.model_type)
    missing = [name for name in family.packages.get(geometry.model_type, ()) if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"the processor of a {family.name} ({geometry.model_type}) needs {' and '.join(missing)}",
            "python -m pip install 'm2pt_cli[families]'",
        )
    processor_class = getattr(transformers, family.processors[geometry.model_type])
    try:
        with quiet_transformers():
            # A video processor has no PIL variant, and all parts of a processor are loaded with the same backend.
            has_video = bool(family.packages.get(geometry.model_type))
            processor: Any = processor_class.from_pretrained(
                folder,
                **({} if has_video else {"backend": "pil"}),
                local_files_only=True,
                trust_remote_code=False,
            )
            processor.image_processor = pil_image_processor(processor.image_processor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"the processor in {folder} can't be used: {first}", "save it there with processor.save_pretrained"
        ) from None
    if family is LLAVA:
        processor.patch_size = geometry.vision.patch_size
        processor.vision_feature_select_strategy = geometry.feature_strategy
        processor.num_additional_image_tokens = int(geometry.vision.has_cls)
    return processor


def pil_image_processor(image_processor: Any) -> Any:
    """The PIL variant of an image processor: its output does not depend on whether torchvision is installed.

    Raises:
        SettingsError: transformers has no such variant.
    """
    if image_processor.backend == "pil":
        return image_processor
    import transformers

    name = f"{type(image_processor).__name__}Pil"
    if not hasattr(transformers, name):
        raise SettingsError(f"{type(image_processor).__name__} has no PIL variant: this base is not supported")
    return getattr(transformers, name)(**image_processor.to_dict())


def set_visual_tokens(processor: Any, model: Any, visual_tokens: str = "patches", num_visual_prompts: int = 0) -> None:
    """Make the processor write one ``<image>`` token per image feature.

    Args:
        model: the base, or a PeftModel of it; only its config is read.
        visual_tokens: ``official`` adds the visual prompts that reach the language model; ``patches`` gives the base's
            own number, as without an adapter.
    """
    if family_of(model.config.model_type) is not LLAVA:
        return  # whose processors write what the image processor says
    has_cls = model.config.vision_config.model_type == "clip_vision_model"
    extra = num_visual_prompts if visual_tokens == "official" else 0
    processor.num_additional_image_tokens = int(has_cls) + extra


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off transformers' progress bars and log messages; m2pt raises or reports what a user must know."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
