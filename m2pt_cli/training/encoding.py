"""The samples of a run as tokens, and the collator that makes batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2pt_cli.data.chat import get_template
from m2pt_cli.data.collate import Collator, ImagePreparer
from m2pt_cli.data.encode import EncodedSample, EncodedSamples, encode_samples
from m2pt_cli.data.samples import Sample
from m2pt_cli.errors import InputError
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.events import Events, Notice
from m2pt_cli.training.plan import Plan


@dataclass(frozen=True)
class EncodedData:
    """Encoded samples, and what makes a batch of them; ``validation`` is None where none are held out."""

    collator: Collator | SkippingCollator
    train: EncodedSamples
    validation: EncodedSamples | None


class SkippingCollator:
    """A collator that leaves out samples whose image turns out to be broken, and counts them.

    In a large data set a fault behind an image's header is met only here, hours into a run.

    Args:
        collator: what makes the batch of the others.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[EncodedSample]) -> dict[str, Tensor]:
        """The batch of the good samples; ``skipped`` counts the others, where there are any.

        Raises:
            InputError: no sample of the batch is good.
        """
        try:
            return self.collator(samples)
        except InputError:
            good = [sample for sample in samples if self._is_readable(sample)]
            if not good or len(good) == len(samples):
                raise
            skipped = torch.tensor(len(samples) - len(good))
        return {**self.collator(good), "skipped": skipped}

    def _is_readable(self, sample: EncodedSample) -> bool:
        try:
            self.collator.images.prepare(sample.sample.images)
        except InputError:
            return False
        return True


def encode_data(plan: Plan, processor: Any, events: Events) -> EncodedData:
    """Tokenise the samples of a plan.

    Args:
        processor: the base's, set to the number of image tokens that the method uses.

    Raises:
        InputError: faulty samples (unless they are to be skipped), or none left.
        SettingsError: the template or the image fit does not go with the base.
    """
    images = ImagePreparer(processor, fit=plan.settings.image_fit or "base")
    tokenizer = processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collator = Collator(images, pad_token_id=pad)
    return EncodedData(
        collator=SkippingCollator(collator) if plan.settings.skip_bad else collator,
        train=_encoded(plan.train, "training", plan.settings, processor, images, events),
        validation=_encoded(plan.validation, "validation", plan.settings, processor, images, events)
        if plan.validation
        else None,
    )


def _encoded(
    samples: Sequence[Sample],
    what: str,
    settings: TrainSettings,
    processor: Any,
    images: ImagePreparer,
    events: Events,
) -> EncodedSamples:
    encoded = encode_samples(
        samples,
        get_template(settings.template or "plain", processor),
        processor.tokenizer,
        image_token_id=processor.image_token_id,
        token_counts=images.token_counts,
        max_length=settings.max_length or 1024,
        skip_bad=settings.skip_bad,
    )
    if encoded.faults:
        events(Notice(f"{encoded.faults:,} faulty {what} samples are skipped", is_warning=True))
    if not len(encoded):
        raise InputError(f"no {what} sample is left", "look at the data with --dry-run")
    if encoded.num_cut:
        said = f"{encoded.num_cut:,} of {len(encoded):,} {what} samples are cut to --max-length {settings.max_length}"
        events(Notice(said, is_warning=True))
    return encoded
