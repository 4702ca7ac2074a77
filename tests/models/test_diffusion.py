"""The engines of generated backgrounds: the library's own results, in batches."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from made_diffusion import CPU, SAVE, SIDE, engine, levels, request, save_all, section
from PIL import Image

from shared.errors import ModelCorruptError, RecipeError, UsageError
from shared.recipe import DiffusionBackground, Recipe
from workers.inpainting.diffusion import engine as engines
from workers.inpainting.diffusion.engine import Engine, KandinskyEngine, load_engine, scheduler_for
from workers.inpainting.diffusion.pipeline import generators_for, place
from workers.inpainting.diffusion.presets import PRESETS, bucket, settings
from workers.inpainting.diffusion.prompts import prompt_for

if TYPE_CHECKING:
    from pathlib import Path

STABLE = ["9 channels", "4 channels", "xl", "xl 4 channels"]
SCHEDULERS = ["published", "ddim", "dpm", "euler", "euler-a", "unipc", "lcm"]
slow_start = pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")  # SDXL's pipeline calls its own method


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines of the real classes with random weights, in the hub's layout."""
    return save_all(tmp_path_factory.mktemp("pipelines"))


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("name", STABLE)
def test_a_batch_gives_what_the_library_gives_one_by_one(folders: dict[str, Path], name: str, strength: float) -> None:
    """Same weights, pictures, seeds and settings: at most one level of 255, which is rounding."""
    loaded, chosen = engine(folders[name], strength=strength)
    assert isinstance(loaded, Engine)
    requests = [request(1), request(2, "a blue mug"), request(3)]
    batch = loaded.generate(requests, chosen)
    pipe = loaded._pipe
    for asked, ours in zip(requests, batch, strict=True):
        pipe.scheduler = scheduler_for(chosen.scheduler, loaded._published)
        own = pipe(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            image=Image.fromarray(asked.image),
            mask_image=Image.fromarray((asked.mask * 255).astype(np.uint8)),
            height=SIDE,
            width=SIDE,
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance,
            strength=strength,
            generator=torch.Generator().manual_seed(asked.seed),
            output_type="np",
        ).images[0]
        assert np.abs(own * 255 - ours.rgb).max() <= 1


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_kandinsky_in_a_batch_gives_what_the_library_gives_one_by_one(
    folders: dict[str, Path], guidance: float
) -> None:
    """At most one level of 255; each picture around its own product, with a negative prompt or without."""
    loaded, chosen = engine(folders["kandinsky"], guidance=guidance)
    assert isinstance(loaded, KandinskyEngine)
    requests = [request(1), request(2, "a blue mug", negative=""), request(3, "a small mug", negative="red")]
    batch = loaded.generate(requests, chosen)
    with torch.inference_mode():
        wanted, unwanted = loaded._embeddings(requests, generators_for(requests))
    for number, (asked, ours) in enumerate(zip(requests, batch, strict=True)):
        generator = torch.Generator().manual_seed(asked.seed)
        words = {"negative_prompt": asked.negative_prompt} if asked.negative_prompt else {}
        embeddings = loaded._prior(asked.prompt, generator=generator, **words)
        torch.testing.assert_close(wanted[number], embeddings.image_embeds[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(unwanted[number], embeddings.negative_image_embeds[0], atol=1e-4, rtol=1e-3)
        own = loaded._decoder(
            **embeddings,
            image=Image.fromarray(asked.image),
            mask_image=asked.mask.copy(),
            height=SIDE,
            width=SIDE,
            num_inference_steps=chosen.steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="np",
        ).images[0]
        assert np.abs(own * 255 - ours.rgb).max() <= 1


@pytest.mark.parametrize(
    ("name", "scheduler"), [*((name, "published") for name in SAVE), ("9 channels", "euler-a"), ("kandinsky", "dpm")]
)
def test_the_same_seed_gives_the_same_picture_in_any_batch(folders: dict[str, Path], name: str, scheduler: str) -> None:
    """Whatever stands beside it, and in which place; another seed gives another picture. At most one level of 255 apart."""
    loaded, chosen = engine(folders[name], scheduler=scheduler)
    alone = loaded.generate([request(7)], chosen)[0].rgb
    among = loaded.generate([request(5), request(6, "a mug", negative=""), request(7)], chosen)
    assert levels(alone, among[2].rgb) <= 1
    assert levels(alone, loaded.generate([request(7), request(5)], chosen)[0].rgb) <= 1
    assert levels(among[0].rgb, among[1].rgb) > 20


@pytest.mark.parametrize("name", ["9 channels", "kandinsky"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs(folders: dict[str, Path], name: str, scheduler: str) -> None:
    """By the name the recipe calls it, from the middle of its steps as well."""
    loaded, chosen = engine(folders[name], scheduler=scheduler, strength=0.5, steps=4)
    pictures = loaded.generate([request(1), request(2)], chosen)
    assert [picture.rgb.shape for picture in pictures] == [(SIDE, SIDE, 3)] * 2
    assert all(picture.rgb.std() > 2 for picture in pictures)


@pytest.mark.parametrize("name", ["9 channels", "kandinsky"])
def test_a_compiled_network_sees_few_batch_sizes(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pictures are run as four, and three come back."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # a compiler is not on every machine
    loaded, chosen = engine(folders[name], compile=True)
    pipe = loaded._pipe if isinstance(loaded, Engine) else loaded._decoder
    sizes: list[int] = []
    pipe.unet.register_forward_pre_hook(
        lambda _, inputs, named: sizes.append(len(inputs[0] if inputs else named["sample"])), with_kwargs=True
    )
    assert len(loaded.generate([request(1), request(2), request(3)], chosen)) == 3
    assert set(sizes) == {8}  # four, each with and without its prompt


def test_prompts_are_encoded_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has one prompt, or one per category; the ones used last are kept."""
    loaded, chosen = engine(folders["9 channels"], steps=1)
    assert isinstance(loaded, Engine)
    calls: list[int] = []
    loaded._pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        loaded.generate([request(1), request(2)], chosen)
    assert len(calls) == 2  # the prompt and the negative one
    monkeypatch.setattr(engines, "PROMPTS_KEPT", 2)
    for prompt in ("a mug", "a red shoe", "a bag", "a red shoe"):
        loaded.generate([request(1, prompt)], chosen)
    assert len(calls) == 6
    assert [prompt for prompt, _ in loaded._prompts] == ["a bag", "a red shoe"]


@slow_start
@pytest.mark.parametrize("options", [{"tiling": True}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("name", ["9 channels", "xl", "kandinsky"])
def test_memory_settings_change_how_and_not_what(folders: dict[str, Path], name: str, options: dict[str, Any]) -> None:
    """The same picture from the same seed, exactly; in half precision roughly."""
    plain, chosen = engine(folders[name])
    loaded, _ = engine(folders[name], **options)
    one, two = (some.generate([request(1)], chosen)[0].rgb.astype(int) for some in (plain, loaded))
    assert np.abs(one - two).mean() <= (12 if "precision" in options else 0)


class Recorded:
    """A pipeline that notes how it is brought to its device."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def to(self, device: object) -> None:
        self.calls.append(("to", device))

    def enable_model_cpu_offload(self, *, device: object) -> None:
        self.calls.append(("model", device))

    def enable_sequential_cpu_offload(self, *, device: object) -> None:
        self.calls.append(("sequential", device))


@pytest.mark.parametrize(
    ("offload", "device", "call"),
    [
        ("none", "cuda:1", "to"),
        ("model", "cuda:1", "model"),
        ("sequential", "cuda:1", "sequential"),
        ("model", "cpu", "to"),
        ("sequential", "cpu", "to"),
    ],
)
def test_offloading_is_to_the_workers_own_gpu(offload: Any, device: str, call: str) -> None:
    """The library would take the first; a CPU has nothing to be offloaded to."""
    pipeline = Recorded()
    place(pipeline, DiffusionBackground(model="diffusion", offload=offload), torch.device(device))
    assert pipeline.calls == [(call, torch.device(device))]


@slow_start
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_batch_out_of_memory_leaves_no_trace(folders: dict[str, Path], part: str) -> None:
    """Torch's own error comes out, for the batcher to halve the batch; SDXL's autoencoder is back in half precision for the next one."""
    loaded, chosen = engine(folders["xl"], precision="float16")
    assert isinstance(loaded, Engine)
    before = loaded.generate([request(1)], chosen)[0].rgb

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = getattr(loaded._pipe.vae, part).register_forward_pre_hook(exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        loaded.generate([request(1)], chosen)
    hook.remove()
    assert np.array_equal(loaded.generate([request(1)], chosen)[0].rgb, before)


def test_what_is_no_pipeline_is_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    """An empty folder, a damaged index, Kandinsky without its prior, a pipeline of another kind."""
    with pytest.raises(ModelCorruptError, match="fetch it again"):
        engine(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelCorruptError, match="fetch it again"):
        engine(tmp_path)
    with pytest.raises(UsageError, match="its prior belongs in"):
        load_engine(folders["kandinsky"], None, section(folders["kandinsky"]), CPU, torch.float32)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_damaged_weights_are_told(tmp_path: Path, folders: dict[str, Path], part: str) -> None:
    """A file cut short is a corrupt model, not an unexpected error."""
    folder = shutil.copytree(folders["9 channels"], tmp_path / "damaged")
    file = next((folder / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelCorruptError, match="fetch it again"):
        engine(folder)


@pytest.fixture(scope="module")
def checked(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose safety checker finds fault with everything: its concepts' thresholds lie under any similarity."""
    small = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config=small, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=32
    )
    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data -= 2
    size = {"height": 32, "width": 32}
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        folders["9 channels"],
        safety_checker=checker,
        feature_extractor=transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
    )
    folder = tmp_path_factory.mktemp("checked") / "inpainting"
    pipe.save_pretrained(folder)
    return folder


def test_the_safety_checker_runs_only_where_asked(checked: Path) -> None:
    """What it blanks is told apart from other black pictures."""
    loaded, chosen = engine(checked, safety_checker=True)
    blanked = loaded.generate([request(1), request(2)], chosen)
    assert [(picture.blanked, int(picture.rgb.max())) for picture in blanked] == [(True, 0)] * 2
    loaded, chosen = engine(checked)
    assert not any(picture.blanked or picture.rgb.max() == 0 for picture in loaded.generate([request(1)], chosen))


def test_a_pipeline_fetched_without_its_safety_checker_loads(checked: Path, tmp_path: Path) -> None:
    """As `vitrina models fetch` leaves it: the index still names the checker. Asking for it is told to be impossible."""
    folder = shutil.copytree(checked, tmp_path / "fetched", ignore=shutil.ignore_patterns("safety_checker"))
    loaded, chosen = engine(folder)
    assert not loaded.generate([request(1)], chosen)[0].blanked
    with pytest.raises(UsageError, match=r"background\.safety_checker to false"):
        engine(folder, safety_checker=True)


@pytest.mark.parametrize(
    ("frame_size", "resolution", "expected"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((3000, 2000), 512, (640, 448)),
        ((900, 1600), 512, (384, 704)),
        ((4000, 400), 512, (704, 384)),
        ((3000, 2000), 1024, (1280, 832)),
        ((400, 4000), 1024, (704, 1472)),
        ((3000, 4000), 768, (640, 896)),
    ],
)
def test_frames_share_a_few_sizes(frame_size: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    """Near the native area, in multiples that the network takes."""
    width, height = bucket(*frame_size, resolution)
    assert (width, height) == expected
    assert abs(width * height / resolution**2 - 1) < 0.15
    assert width % 64 == height % 64 == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"category": "shoes", "title": "Runner 5"}, "a photo of shoes Runner 5, light grey background"),
        ({"category": "shoes"}, "a photo of shoes, light grey background"),
        ({"title": "{color} {0}"}, "a photo of {color} {0}, light grey background"),
        ({}, "a photo, light grey background"),
        ({"prompt": "on a beach"}, "on a beach"),
    ],
)
def test_prompts_are_filled_without_trace_of_what_is_missing(fields: dict[str, str], expected: str) -> None:
    """No double spaces, stray commas or dangling prepositions; braces in a title are text."""
    chosen = DiffusionBackground(model="diffusion", prompt="a photo of {category} {title}, {color} background")
    assert prompt_for(chosen, fields) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 1, "strength": 0.5}, "runs no step"),
        ({"compile": True, "offload": "model"}, "compile needs"),
        ({"weights": "kandinsky-2.2", "lora": "shop/house-style@main"}, "lora is for the Stable Diffusion family"),
        (
            {"weights": "sdxl", "lora": "lcm-lora-sd15"},
            "lora lcm-lora-sd15 is for dreamshaper-8 and sd15, not for sdxl",
        ),
        ({"weights": "kandinsky-2.2", "resolution": "native"}, "resolution native is for the Stable Diffusion family"),
        ({"lora": "lcm-lora-sd15", "steps": 60}, "at most 50 steps"),
        ({"scheduler": "lcm", "steps": 51}, "at most 50 steps"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], told: str) -> None:
    """Before the job, not at its first photo."""
    with pytest.raises(RecipeError, match=told):
        Recipe.from_mapping({"background": {"model": "diffusion", **options}})


def test_every_preset_fills_the_gaps() -> None:
    """The recipe's own settings win; weights that are no preset keep their own size and scheduler."""
    for name, preset in PRESETS.items():
        chosen = settings(DiffusionBackground(model="diffusion", weights=name), 8)
        assert (chosen.resolution, chosen.steps, chosen.guidance) == (preset.resolution, preset.steps, preset.guidance)
    own = settings(DiffusionBackground(model="diffusion", weights="sdxl", steps=7, guidance=0.0, resolution=768), 8)
    assert (own.resolution, own.steps, own.guidance) == (768, 7, 0.0)
    folder = settings(DiffusionBackground(model="diffusion", weights="./somewhere"), 768)
    assert (folder.resolution, folder.scheduler) == (768, "published")
