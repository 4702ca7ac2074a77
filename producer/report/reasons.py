"""Reason words in plain language: what happened or what to look at, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """One reason for people."""

    title: str
    """A few words, for a chip."""
    advice: str = ""
    """Of a failure, what happened; of a doubt, what to look at. Empty for a word this release does not know."""
    remedy: str = ""
    """What to do about a failure, or about a doubt that proves right."""


_AGAIN = "Run the same command again."
_RELEASES = "Workers and producer differ in version."
_ONE_RELEASE = "Bring both to one release, then run the same command again."
_BY_HAND = "Write it by hand"

_FAILURES = {
    # the photo
    "unreadable": Explanation(
        "Damaged file", "The file is empty, cut short or damaged.", "Upload the photo again, then run the same command."
    ),
    "unsupported": Explanation(
        "Not a supported picture", "It is in a format that is not read.", "Save it as JPEG, PNG or WebP and upload it."
    ),
    "too_large": Explanation(
        "Photo too large",
        "It is over the limit on bytes or pixels.",
        "Upload a smaller copy, or raise VITRINA_MAX_BYTES or VITRINA_MAX_PIXELS for producer and workers.",
    ),
    "too_small": Explanation(
        "Photo too small", "There are too few pixels to hold a product.", "Find a larger original."
    ),
    "no_product": Explanation(
        "No product found", "Nothing stood out to cut out.", "Give a clearer photo of one product, or supply a mask."
    ),
    "no_mask": Explanation(
        "Mask missing",
        "The recipe takes masks from beside the photos and this one has none.",
        "Put a mask beside the photo, or name it in a manifest.",
    ),
    "bad_prompt": Explanation(
        "Points or box unusable", "The message below says why.", "Correct the item's row and submit the job again."
    ),
    "source_changed": Explanation(
        "Photo changed meanwhile", "It is not the file that was listed.", "Submit the job again to take the new one."
    ),
    "bad_key": Explanation(
        "Unsafe file name", "The name could leave its folder or cannot be written.", "Rename the file."
    ),
    "bad_message": Explanation("Message not understood", _RELEASES, _ONE_RELEASE),
    "bad_item": Explanation("Item refused", "The message below says why.", "Correct the item and submit it again."),
    # the world
    "storage": Explanation("Storage did not answer", "It may have passed by now.", _AGAIN),
    "storage_refused": Explanation(
        "Storage refused access",
        "The bucket or the credentials were not accepted.",
        "Check the bucket's name, the credentials and the right to write; `vitrina doctor` looks. " + _AGAIN,
    ),
    "missing": Explanation(
        "File missing",
        "It is not there: it has gone since it was listed, or a manifest names it wrongly.",
        "Restore it or correct the manifest, then run the same command again.",
    ),
    "broker": Explanation(
        "Broker out of reach", "Redis did not answer.", "Check that it runs, then run the same command again."
    ),
    "out_of_memory": Explanation(
        "Out of memory",
        "Even this one item did not fit.",
        "Use a larger worker, or a smaller size in the recipe, then run the command again.",
    ),
    "worker_lost": Explanation(
        "Worker lost",
        "The item was started several times and never ended: its worker was killed each time.",
        "Look at the photo and at the worker's memory before you run the command again.",
    ),
    "stage_error": Explanation(
        "Unexpected error", "Something in the stage failed; the worker's log has the traceback.", _AGAIN
    ),
    "model_missing": Explanation(
        "Model not installed",
        "The worker lacks the recipe's model.",
        "Fetch it there with `vitrina models fetch`, then run the same command again.",
    ),
    "model_corrupt": Explanation(
        "Model files damaged",
        "They are not what was published.",
        "Fetch the model again on the worker, then run the same command again.",
    ),
    "model_too_large": Explanation(
        "Model too large for the worker",
        "Its weights alone take more memory than there is.",
        "Choose smaller weights in the recipe or a larger machine, then run the same command again.",
    ),
    "unknown_job": Explanation(
        "Job's record out of reach",
        "The worker does not see the folder or bucket that the job was submitted with.",
        "Give it access, then run the same command again.",
    ),
    "job_damaged": Explanation(
        "Job's record damaged", "The message below names the file.", _AGAIN + " Finished photos are skipped."
    ),
    "cancelled": Explanation(
        "Cancelled", "The job was cancelled before this item was made.", "Submit it again if it is still wanted."
    ),
    "held": Explanation(
        "Job taken over",
        "Another command follows this job.",
        "Let that one finish, or stop it and run this one again.",
    ),
    "bad_recipe": Explanation("Recipe not understood", _RELEASES, _ONE_RELEASE),
    "usage": Explanation(
        "Wrong setting", "The message below says which.", "Correct it and run the same command again."
    ),
    "embedded": Explanation("Embedded service failed", "The message below names its log.", _AGAIN),
    "error": Explanation("Unexpected failure", "The message below says what happened.", _AGAIN),
}

_DOUBTS = {
    # the mask
    "mask_border": Explanation(
        "Touches the frame",
        "Look whether the photo's edge cuts the product off, or the table came along.",
        "Take a photo with room around the product, or supply a mask. For close-ups, raise segmentation.gates.max_border.",
    ),
    "mask_small": Explanation(
        "Very small product",
        "Look whether this is the product, and not a detail of it.",
        "Take a closer photo, or supply a mask. For small things, lower segmentation.gates.min_area.",
    ),
    "mask_large": Explanation(
        "Fills the photo",
        "Look whether the background came along.",
        "Take a photo before a plain background, or supply a mask.",
    ),
    "mask_fragments": Explanation(
        "Cut-out in pieces",
        "Look whether each piece belongs to the product, and none is missing.",
        "Supply a mask, or take a photo before a plain background. For sets, raise segmentation.gates.max_fragments.",
    ),
    "mask_unstable": Explanation(
        "Uncertain outline",
        "Look along the edge of the cut-out for bites, holes and leftovers.",
        "Take a sharper photo with more contrast to its background, supply a mask, or use segmentation.model sam.",
    ),
    "mask_faint": Explanation(
        "Outline hard to see",
        "Look whether the cut-out follows the product where it has nearly the colour of what is behind it.",
        "Take a photo before a background of another colour, or supply a mask.",
    ),
    "choice_unsure": Explanation(
        "Uncertain choice",
        "Look whether the product was cut out, and not something beside it.",
        "Give the item a box or points in a manifest, or supply a mask.",
    ),
    # the picture
    "picture_flat": Explanation(
        "Almost one colour",
        "Look whether the picture shows the product at all.",
        "Choose another background colour; for a generated one, another prompt or seed.",
    ),
    "picture_black": Explanation(
        "Almost black",
        "Look whether the picture shows the product at all.",
        "Choose a lighter background; for a generated one, another prompt or seed.",
    ),
    "picture_unsafe": Explanation(
        "Safety checker hit",
        "The model withheld its background; what you see stands on what it left.",
        "Choose another prompt or seed, or another background.",
    ),
    "picture_overgrown": Explanation(
        "Product grew",
        "Look whether the background continues the product: a longer handle, a second sole.",
        "Choose another seed or prompt, or a background that is not generated.",
    ),
    "product_changed": Explanation(
        "Product's pixels changed",
        "Compare the result with the photo: the product should be the photo's own, pixel by pixel.",
        "This should never happen: do not use the picture, and report it.",
    ),
    # the caption
    "caption_uncertain": Explanation(
        "Caption uncertain",
        "Read the caption: it names only what the model was sure of.",
        f"{_BY_HAND}, or use a larger model: caption.model blip2 or vlm.",
    ),
    "caption_empty": Explanation("No caption", "The model said nothing.", f"{_BY_HAND}, or use another model."),
    "caption_loop": Explanation("Caption repeats itself", "Read the caption.", f"{_BY_HAND}, or use another model."),
    "caption_echo": Explanation(
        "Caption repeats the prompt", "Read the caption.", f"{_BY_HAND}, or change caption.prompt."
    ),
    "caption_long": Explanation(
        "Caption too long", "Read the caption to its end.", "Shorten it, or lower caption.max_tokens."
    ),
    "caption_cut": Explanation(
        "Caption breaks off", "Read the caption: it may end in the middle.", "Finish it, or raise caption.max_tokens."
    ),
    "caption_stop_word": Explanation(
        "Unwanted word in the caption", "Read the caption: it holds a word that the recipe forbids.", f"{_BY_HAND}."
    ),
    "caption_schema": Explanation(
        "Answer not usable",
        "The model did not answer in the form asked for, even when told.",
        f"{_BY_HAND}, or use another model.",
    ),
    "translation_empty": Explanation("No translation", "One language is empty.", f"{_BY_HAND}."),
    "translation_loop": Explanation("Translation repeats itself", "Read the translation.", f"{_BY_HAND}."),
    "translation_missing": Explanation(
        "Not translated",
        "One language holds the text of another.",
        f"{_BY_HAND}, or name a model in caption.translators.",
    ),
}

_KNOWN = _FAILURES | _DOUBTS


def explain(reason: str) -> Explanation:
    """Put a reason into words; one that is not known is shown as it is."""
    return _KNOWN.get(reason) or Explanation(reason)
