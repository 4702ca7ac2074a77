"""Reason words in plain language: what happened, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """One reason for people."""

    title: str
    """A few words, for a chip."""
    advice: str = ""
    """One or two sentences; empty for a word this release does not know."""


_KNOWN = {
    # failures: the photo
    "unreadable": Explanation("Damaged file", "The file is empty, cut short or damaged. Upload the photo again."),
    "unsupported": Explanation("Not a supported picture", "Save it as JPEG, PNG or WebP and upload it again."),
    "too_large": Explanation("Photo too large", "Upload a smaller copy, or raise the limit on bytes or pixels."),
    "too_small": Explanation("Photo too small", "There are too few pixels to hold a product. Find a larger original."),
    "no_product": Explanation("No product found", "Nothing stood out to cut out. Check the photo, or supply a mask."),
    "no_mask": Explanation(
        "Mask missing", "The recipe takes masks from elsewhere and this photo has none. Put one beside it."
    ),
    "bad_prompt": Explanation(
        "Points or box unusable", "The message below says why. Correct the item's row and submit the job again."
    ),
    "source_changed": Explanation(
        "Photo changed meanwhile", "It is not the file that was listed. Submit the job again to take the new one."
    ),
    "bad_key": Explanation(
        "Unsafe file name", "The name could leave its folder or cannot be written. Rename the file."
    ),
    "bad_message": Explanation(
        "Message not understood",
        "Workers and producer differ in version. Bring both to one release and run the same command again.",
    ),
    "bad_item": Explanation("Item refused", "The message below says why."),
    # failures: the world
    "storage": Explanation("Storage did not answer", "It may have passed by now. Run the same command again."),
    "storage_refused": Explanation(
        "Storage refused access",
        "Check the bucket's name, the credentials and the right to write, then run the same command again.",
    ),
    "missing": Explanation(
        "File gone", "It was listed but is no longer there. Restore it and run the same command again."
    ),
    "broker": Explanation("Broker out of reach", "Check that Redis answers, then run the same command again."),
    "out_of_memory": Explanation(
        "Out of memory",
        "Even this one item did not fit. Use a larger worker, or reduce the size in the recipe, and run the command again.",
    ),
    "worker_lost": Explanation(
        "Worker lost",
        "The item was started several times and never ended. Look at the photo before you run the command again.",
    ),
    "stage_error": Explanation(
        "Unexpected error", "The worker's log has the traceback. Run the same command again to try once more."
    ),
    "model_missing": Explanation(
        "Model not installed", "Fetch the model on the worker, then run the same command again."
    ),
    "model_corrupt": Explanation(
        "Model files damaged", "Fetch the model again on the worker, then run the same command again."
    ),
    "unknown_job": Explanation(
        "Job's record out of reach",
        "The worker does not see the folder or bucket that the job was submitted with. Give it access, then run the same command again.",
    ),
    "job_damaged": Explanation(
        "Job's record damaged",
        "The message below names the file. Run the same command again: finished photos are skipped.",
    ),
    "bad_recipe": Explanation(
        "Recipe not understood",
        "Workers and producer differ in version. Bring both to one release and run the same command again.",
    ),
    "usage": Explanation("Wrong setting", "The message below says which. Correct it and run the same command again."),
    "embedded": Explanation("Embedded service failed", "The message below names its log. Run the same command again."),
    "error": Explanation("Unexpected failure", "The message below says what happened. Run the same command again."),
    # doubts: the mask
    "mask_border": Explanation("Touches the frame", "The product may be cropped. Check the edges of the cut-out."),
    "mask_small": Explanation("Very small product", "Check that the product was found, and not a detail of it."),
    "mask_large": Explanation("Fills the photo", "Check that the background did not come along."),
    "mask_fragments": Explanation("Cut-out in pieces", "Check that each piece belongs to the product."),
    "mask_unstable": Explanation(
        "Uncertain outline", "The outline depends on a threshold. Check it against the photo."
    ),
    "choice_unsure": Explanation(
        "Uncertain choice", "Something else in the photo is nearly as likely. Check that the product was cut out."
    ),
    # doubts: the picture
    "picture_flat": Explanation(
        "Almost one colour", "The picture has hardly any contrast. Check that it shows anything."
    ),
    "picture_black": Explanation("Almost black", "Check the picture; another seed or background may help."),
    "picture_unsafe": Explanation("Safety checker hit", "The model withheld its picture. Try another prompt or seed."),
    "picture_overgrown": Explanation(
        "Product grew", "The background continues the product. Try another seed or prompt."
    ),
    "product_changed": Explanation(
        "Product's pixels changed",
        "They differ from the photo's. Compare the two, and report it: this should not happen.",
    ),
    # doubts: the caption
    "caption_uncertain": Explanation(
        "Caption uncertain", "The product was hard to name. Read the caption, or write one."
    ),
    "caption_empty": Explanation("No caption", "The model said nothing. Write a caption."),
    "caption_loop": Explanation("Caption repeats itself", "Shorten it or write another."),
    "caption_echo": Explanation("Caption repeats the prompt", "Write another, or change the prompt."),
    "caption_long": Explanation("Caption too long", "Shorten it."),
    "caption_stop_word": Explanation(
        "Unwanted word in the caption", "It holds a word that the recipe forbids. Write another."
    ),
    "caption_schema": Explanation(
        "Answer not usable", "The model did not answer in the form asked for, even when told. Write the texts."
    ),
    "translation_empty": Explanation("No translation", "Write the translation."),
    "translation_loop": Explanation("Translation repeats itself", "Shorten it or write another."),
    "translation_missing": Explanation("Not translated", "The text came back unchanged. Write the translation."),
}


def explain(reason: str) -> Explanation:
    """Put a reason into words; one that is not known is shown as it is."""
    return _KNOWN.get(reason) or Explanation(reason)
