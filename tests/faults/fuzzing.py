"""Mutated pictures through decode, gates and encode; hostile recipes, manifests, messages and keys. `python fuzzing.py SEED PICTURES TEXTS` is one process of it."""

from __future__ import annotations

import base64
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from producer.manifest import Manifest
from shared.envelope import check_envelope
from shared.errors import ItemError, UsageError
from shared.keys import STAGES, check_source_key
from shared.messages import Item
from shared.pictures import decode, encode_jpeg
from shared.recipe import MaskGates, PictureGates, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab import Outcome

PIXELS = 4_000_000
"""Limit on pixels: what a mutated header may ask for at most."""
MEMORY = 1_500_000_000
"""Bytes of address space of the process that fuzzes, interpreter and libraries included."""
HANG = 5
"""Seconds that one input may take."""
PROCESSES = 2
TEXTS = ("recipe", "manifest", "message", "envelope", "key")
STUCK = 900
"""Seconds after which a process is ended that no alarm reaches: one that hangs in a library's C."""


class HangError(BaseException):
    """An input took too long. No `Exception`: nothing on the way may take it for a broken picture."""


def corpus() -> list[bytes]:
    """Make small pictures of every format and mode that is read."""
    noise = np.random.default_rng(1).integers(0, 255, (40, 56, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {}),
        (rgba, "PNG", {}),
        (rgb.quantize(16), "PNG", {}),
        (Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (rgba, "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "AVIF", {}),
        (rgb.quantize(8), "GIF", {"save_all": True, "append_images": [rgb.quantize(8)]}),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgba, "TIFF", {"compression": "tiff_deflate"}),
        (rgb, "BMP", {}),
    ]
    made = []
    for image, kind, options in wanted:
        file = io.BytesIO()
        image.save(file, kind, **options)
        made.append(file.getvalue())
    return made


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat, insert and overwrite with values that lengths and sizes do not expect."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        # Headers decide most: half of the changes go there.
        reach = len(out) if chance.random() < 0.5 else min(len(out), 96)
        place = chance.randrange(max(1, reach))
        kind = chance.randrange(6)
        if kind == 0:
            out[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            out[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0"))
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            out[place:place] = out[place : place + chance.randrange(1, 64)]
        elif kind == 4:
            del out[place : place + chance.randrange(1, 32)]
        else:
            out[place:place] = chance.randbytes(chance.randrange(1, 16))
    return bytes(out)


def through(data: bytes) -> str:
    """Take a picture the whole way; return the reason it was refused for, or `whole`."""
    from workers.inpainting.gates import picture_reasons  # noqa: PLC0415 - the process that only starts others needs none of it
    from workers.segmentation.cutout import artifacts  # noqa: PLC0415 - as above
    from workers.segmentation.gates import mask_reasons  # noqa: PLC0415 - as above

    try:
        picture = decode(data, max_bytes=1_000_000, max_pixels=PIXELS)
        mask = np.asarray(picture.alpha if picture.alpha is not None else picture.rgb.convert("L"))
        mask_reasons(mask, MaskGates())
        picture_reasons(np.asarray(picture.rgb), PictureGates(), 0)
        artifacts(picture.rgb, mask, mixed=True)
    except ItemError as error:
        return error.reason
    encode_jpeg(picture.rgb)
    return "whole"


def texts(chance: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield hostile recipes, manifests, messages and keys in turn, each with what reads it."""
    recipe = json.loads(Recipe().to_json())
    message = Item("20261123-142501-3f9a2c", 3, "shoes/1.jpg", "etag").to_wire()
    with tempfile.TemporaryDirectory(prefix="vitrina-fuzz-") as made:
        folder = Path(made)
        while True:
            if chance.random() < 0.5:
                hostile = twisted(recipe, chance)
                yield "recipe", lambda hostile=hostile: Recipe.from_mapping(hostile)  # type: ignore[misc] # bound at once
            else:
                file = folder / chance.choice(("r.yaml", "r.json"))
                file.write_bytes(mutated(json.dumps(recipe).encode(), chance))
                yield "recipe", lambda file=file: Recipe.load(file)  # type: ignore[misc] # as above
            table = folder / chance.choice(("m.csv", "m.jsonl"))
            rows = (
                b'key,id,points,box\na.jpg,1,"[[1,2,1]]","[0,0,9,9]"\n'
                if table.suffix == ".csv"
                else b'{"key": "a.jpg", "seed": 1}\n'
            )
            table.write_bytes(mutated(rows * 3, chance))
            yield "manifest", lambda table=table: Manifest(table).check()  # type: ignore[misc] # as above
            wire = twisted(message, chance)
            yield "message", lambda wire=wire: Item.from_wire(wire)  # type: ignore[misc] # as above
            envelope = twisted(enveloped(message), chance)
            yield "envelope", lambda envelope=envelope: check_envelope(envelope, STAGES[0])  # type: ignore[misc] # as above
            key = mutated(b"shoes/../\xd0\xb1\xd0\xb0\\1.jpg", chance).decode("utf-8", "surrogateescape")
            yield "key", lambda key=key: check_source_key(key)  # type: ignore[misc] # as above


def enveloped(message: dict[str, Any]) -> dict[str, Any]:
    """Wrap a message as Celery does on its way through the first queue."""
    body = json.dumps([[message], {}, {"callbacks": None, "errbacks": None, "chain": [], "chord": None}])
    delivery = {"exchange": "", "routing_key": STAGES[0]}
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": STAGES[0], "id": "1", "eta": None, "retries": 0, "timelimit": [None, None]},
        "properties": {"delivery_tag": "1", "delivery_info": delivery, "body_encoding": "base64"},
    }


def twisted(value: Any, chance: random.Random) -> Any:
    """Change a tree of JSON somewhere: a type, an extreme, a name, a depth."""
    odd: list[Any] = [
        None,
        True,
        -1,
        10**400,
        1e308,
        float("nan"),
        "",
        "x" * 5000,
        "\0",
        "../" * 9,
        [],
        {},
        [[]] * 50,
        "é́",
        -0.0,
    ]
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        changed = dict(value)
        changed[name if chance.random() < 0.9 else f"{name}_"] = twisted(value[name], chance)
        return changed
    return chance.choice(odd)


def set_alarms(seconds: float) -> None:
    """Ring after so much of the processor's time, which other programs cannot use up, or ten times as long by the clock; 0 ends both."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def one_process(seed: int, pictures: int, hostile: int) -> dict[str, Any]:
    """Fuzz; a crash ends the process, whatever is not an error of ours is kept as a fault."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    made = corpus()
    for data in made:  # warm, so that what is measured is the pictures
        through(data)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counted: dict[str, int] = {}
    faults: list[str] = []
    slowest = 0.0

    def late(*_: object) -> None:
        raise HangError(f"over {HANG} s")

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, late)
    sources = texts(chance)
    for number in range(pictures + hostile):
        data = mutated(chance.choice(made), chance) if number < pictures else b""
        set_alarms(HANG)
        began = time.perf_counter()
        try:
            if number < pictures:
                found = through(data)
            else:
                kind, read = next(sources)
                found = kind
                read()
        except (ItemError, UsageError):
            pass  # what a person is told
        except (Exception, HangError) as error:  # noqa: BLE001 - anything else is what we look for
            faults.append(f"seed {seed}, input {number}: {type(error).__name__}: {error} {data[:16].hex()}"[:300])
        set_alarms(0)
        slowest = max(slowest, time.perf_counter() - began)
        counted[found] = counted.get(found, 0) + 1
    return {"counted": counted, "faults": faults, "slowest": round(slowest, 2), "peak_mb": round(peak_bytes() / 1e6)}


def peak_bytes() -> int:
    """Return the most memory this process had at once; `getrusage` tells that of the one which started it, where that had more."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def fuzz(folder: Path, *, pictures: int = 20_000, hostile: int = 12_500) -> Outcome:
    """No crash, no hang over 5 s, no more memory than the limit, and of the texts 2,500 of each kind."""
    from lab import Outcome  # noqa: PLC0415 - the child needs none of it

    share = [str(pictures // PROCESSES), str(hostile // PROCESSES)]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(seed), *share],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for seed in range(PROCESSES)
    ]
    outcome = Outcome(submitted=pictures + hostile)
    for child in children:
        try:
            said, wrong = child.communicate(timeout=STUCK)
        except subprocess.TimeoutExpired:
            child.kill()
            said, wrong = child.communicate()
            outcome.expect(f"no input hangs for {STUCK} s", kept=False)
        outcome.expect(f"the process survived: {wrong[-400:]}", child.returncode == 0)
        if child.returncode:
            continue
        found = json.loads(said.splitlines()[-1])
        outcome.finished += sum(found["counted"].values())
        for fault in found["faults"]:
            outcome.expect(fault, kept=False)
        for name, number in found["counted"].items():
            outcome.also[name] = outcome.also.get(name, 0) + number
        outcome.also["slowest_seconds"] = max(outcome.also.get("slowest_seconds", 0), found["slowest"])
        outcome.also["peak_mb"] = max(outcome.also.get("peak_mb", 0), found["peak_mb"])
    outcome.lost = outcome.submitted - outcome.finished
    outcome.expect("an input takes no longer than the limit", outcome.also.get("slowest_seconds", 0) < 10 * HANG)
    outcome.expect("no input takes more memory than the limit", outcome.also.get("peak_mb", 0) < MEMORY / 1e6)
    fewest = min(outcome.also.get(kind, 0) for kind in TEXTS)
    outcome.expect("hostile texts of every kind were read", fewest >= hostile // len(TEXTS) - 2 * PROCESSES)
    return outcome


if __name__ == "__main__":
    print(json.dumps(one_process(*map(int, sys.argv[1:]))))
