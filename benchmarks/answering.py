"""The answer engine against a plain transformers loop, in one run: same checkpoint, same questions, same answers.

    python benchmarks/answering.py                     # CPU, one thread
    python benchmarks/answering.py --device cuda --geometry llava-1.5-7b --shape mme

A shape is that of a real benchmark, scaled down: MME asks 2 questions about each of 1,187 images, POPE 18 about 500.

The last columns time an alternative to the shared prefix: the cache repeated for every question (see `repeated`), with
the same images and preprocessing. The plain loop is what most evaluation tools do: batch 1, one processor call and one
``generate`` per question. All timings include image decoding and preprocessing. Weights are random, which does not
change the cost of a token; equal answers are counted anyway.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from geometries import GEOMETRIES, build
from measure import interleaved, ratio, setting, table, write
from peft import get_peft_model
from PIL import Image
from repeated import answer_repeated
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from m2pt_cli.data.sample import BytesImage
from m2pt_cli.generation.engine import AnswerEngine, Decoding, Question
from m2pt_cli.method import M2PTConfig
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.models.load import LoadedBase

NEW_TOKENS = 2
# Questions per image, and images, of the whole benchmark.
SHAPES = {"mme": (2, 1187), "pope": (18, 500)}
LABELS = {"engine": "m2pt", "plain": "plain loop"}
SYSTEM_WORDS = 35
QUESTION_WORDS = (14, 26)
ALIKE_WORDS = (2, 6)


def make_processor(vocabulary: int, image: int, patch: int) -> LlavaProcessor:
    """A word-level tokenizer of the geometry's vocabulary size and the usual CLIP image processor."""
    words = {f"w{i}": i for i in range(vocabulary)}
    for i, special in enumerate(("<unk>", "<s>", "</s>", "USER:", "ASSISTANT:")):
        del words[f"w{i}"]
        words[special] = i
    del words[f"w{vocabulary - 1}"]
    words["<image>"] = vocabulary - 1
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image}, crop_size={"height": image, "width": image}
        ),
        tokenizer=fast,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def make_images(count: int) -> list[BytesImage]:
    """JPEG photographs' worth of decoding: 640 x 480 of smooth noise."""
    generator = np.random.default_rng(0)
    images = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((640, 480)).save(buffer, "JPEG", quality=90)
        images.append(BytesImage(f"image{number}", buffer.getvalue()))
    return images


def plain_loop(loaded: LoadedBase, questions: list[Question]) -> list[str]:
    """Batch 1: open, process and generate for every question anew."""
    answers = []
    for question in questions:
        inputs = loaded.processor(images=question.images[0].open(), text=prompt_of(question), return_tensors="pt")
        inputs = inputs.to(loaded.device, loaded.dtype)
        with torch.inference_mode():
            out = loaded.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        answers.append(loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


def engine_answers(engine: AnswerEngine, questions: list[Question]) -> list[str]:
    """By the engine, for which a question that fails is a reply like any other: here it would pass for a fast one."""
    answers = {}
    for reply in engine.answer(questions):
        if reply.text is None:
            raise RuntimeError(f"question {reply.question.id} failed: {reply.error}")
        answers[reply.question.id] = reply.text
    return [answers[question.id] for question in questions]


def repeated_cache(engine: AnswerEngine, questions: list[Question]) -> list[str]:
    """Every image once, its cache repeated for each of its questions."""
    loaded, answers = engine.loaded, {}
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.images[0].name, []).append(question)
    for members in groups.values():
        tokens = answer_repeated(
            loaded.model,
            [engine.encode(question) for question in members],
            engine._to_device(engine.images.prepare(members[0].images)),
            image_token_id=loaded.model.config.image_token_id,
            new_tokens=NEW_TOKENS,
            pad_id=engine.pad_id,
        )
        answers |= {question.id: engine._decode(new) for question, new in zip(members, tokens, strict=True)}
    return [answers[question.id] for question in questions]


def prompt_of(question: Question) -> str:
    """The text of the ``plain`` template."""
    return f"USER: <image>\n{question.text} ASSISTANT:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="answering")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-image", type=int, action="append", help="questions per image; default 1, 2 and 18")
    parser.add_argument("--shape", choices=SHAPES, help="instead of --per-image")
    parser.add_argument("--images", type=int, default=2, help="images per measurement")
    parser.add_argument("--plain-images", type=int, help="how many of them the plain loop answers; default all")
    parser.add_argument("--without-repeated", action="store_true", help="leave out the alternative to packing")
    parser.add_argument("--no-json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    geometry = GEOMETRIES[arguments.geometry]
    base = build(geometry, device, dtype)
    vision = base.config.vision_config
    processor = make_processor(base.config.text_config.vocab_size, vision.image_size, vision.patch_size)
    model = get_peft_model(base, M2PTConfig(num_visual_prompts=20, num_textual_prompts=10)).eval()
    loaded = LoadedBase(
        model=model, processor=processor, name="random", entry=entry_of("nano"), fingerprint=None, device=device,
        dtype=dtype,
    )  # fmt: skip
    engine = AnswerEngine(loaded, template="plain", image_fit="base", decoding=Decoding(NEW_TOKENS))
    rows, results = [], {}
    rng = random.Random(0)
    shapes = [SHAPES[arguments.shape][0]] if arguments.shape else arguments.per_image or (1, 2, 18)
    for per_image in shapes:
        # The system sentence of a real template is part of every prompt: here the words before the question.
        head = " ".join(f"w{rng.randrange(5, 30000)}" for _ in range(SYSTEM_WORDS))
        questions = []
        for i, image in enumerate(make_images(arguments.images)):
            # Those of a benchmark about one image begin alike: a batch holds prefixes of different lengths.
            alike = rng.randint(*ALIKE_WORDS) if arguments.shape else 0
            start = [f"w{rng.randrange(5, 30000)}" for _ in range(alike)]
            for q in range(per_image):
                own = [f"w{rng.randrange(5, 30000)}" for _ in range(rng.randint(*QUESTION_WORDS) - alike)]
                questions.append(Question(f"{i}-{q}", " ".join([head, *start, *own]), (image,)))
        plain = questions[: per_image * (arguments.plain_images or arguments.images)]
        got: dict[str, list[str]] = {}

        def run_plain(questions: list[Question] = plain, got: dict[str, list[str]] = got) -> None:
            got["plain"] = plain_loop(loaded, questions)

        def run_engine(questions: list[Question] = questions, got: dict[str, list[str]] = got) -> None:
            got["engine"] = engine_answers(engine, questions)

        def run_repeated(questions: list[Question] = questions, got: dict[str, list[str]] = got) -> None:
            got["repeated"] = repeated_cache(engine, questions)

        variants = {"plain": run_plain, "engine": run_engine, "repeated": run_repeated}
        if arguments.without_repeated:
            del variants["repeated"]
        asked = {name: len(plain if name == "plain" else questions) for name in variants}
        why: dict[str, str] = {}
        seconds = interleaved(variants, rounds=arguments.rounds, warmup=1, device=device, left_out=why)
        each = {name: [second / asked[name] for second in values] for name, values in seconds.items()}
        per_second = {name: 1 / sorted(values)[len(values) // 2] for name, values in each.items()}
        gains = {name: ratio(each["plain"], each[name]) for name in each if "plain" in each}
        same = {name: sum(a == b for a, b in zip(got["plain"], got[name], strict=False)) for name in gains}
        results[per_image] = {
            "seconds": seconds, "asked": asked, "questions_per_second": per_second, "gain": gains, "same": same,
            "left_out": why,
        }  # fmt: skip
        if arguments.shape:
            whole = per_image * SHAPES[arguments.shape][1]
            results[per_image]["whole_seconds"] = {name: whole / speed for name, speed in per_second.items()}
        speeds = {name: f"{per_second[name]:.2f}" if name in per_second else why[name] for name in variants}
        row = [str(per_image), speeds["plain"], speeds["engine"]]
        for name in ("engine", "repeated"):
            if name in gains:
                row += [f"{gains[name]['median']:.2f}x", f"{gains[name]['min']:.2f}-{gains[name]['max']:.2f}"]
                row += [f"{same[name]}/{len(plain)}"]
            elif name in variants:
                row += ["?"] * 3
        rows.append(row)
    where = setting(device)
    title = f"questions per second, {arguments.geometry}, {where['device']}, {dtype}, {NEW_TOKENS} new tokens"
    columns = ["per image", "plain loop", "m2pt", "gain", "spread", "same answers"]
    if not arguments.without_repeated:
        columns += ["repeated cache", "spread", "same answers"]
    print(table(title, columns, rows))
    if arguments.shape:
        whole = results[shapes[0]]["whole_seconds"]
        totals = [f"{label} {whole[name]:,.0f} s" for name, label in LABELS.items() if name in whole]
        print(f"all questions of {arguments.shape}: {', '.join(totals) or 'not measured'}")
    if not arguments.no_json:
        content = {
            "setting": where, "geometry": arguments.geometry, "dtype": str(dtype).split(".")[1],
            "new_tokens": NEW_TOKENS, "images": arguments.images, "per_image": results,
        }  # fmt: skip
        name = f"answering-{arguments.geometry}{'-' + arguments.shape if arguments.shape else ''}-{device.type}"
        print(f"written to {write(name, content)}")
    if any(result["left_out"] for result in results.values()):
        sys.exit("a row is missing")


if __name__ == "__main__":
    main()
