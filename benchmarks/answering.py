"""The answer engine beside a plain transformers loop, in one run: same checkpoint, same questions, same answers.

    python benchmarks/answering.py                     # CPU, one thread
    python benchmarks/answering.py --device cuda --dtype bfloat16 --geometry llava-1.5-7b

The last columns time the alternative to packing, the cache repeated for every question (see `repeated`), with the same
images and preprocessing. The plain loop is what most evaluation tools do: batch 1, one processor call and one
``generate`` per question. Image decoding and preprocessing are inside all of them. Weights are random: the cost of a
token does not depend on them; equal answers are counted all the same.
"""

from __future__ import annotations

import argparse
import io
import os
import random

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

from m2pt_cli.answering.engine import AnswerEngine, Decoding, Question
from m2pt_cli.bases.catalog import entry_of
from m2pt_cli.bases.loading import LoadedBase
from m2pt_cli.data.samples import BytesImage
from m2pt_cli.method import M2PTConfig

NEW_TOKENS = 2
SYSTEM_WORDS = 35
QUESTION_WORDS = (14, 26)


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
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-image", type=int, action="append", help="questions per image; default 1, 2 and 18")
    parser.add_argument("--images", type=int, default=2, help="images per measurement")
    parser.add_argument("--no-json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    geometry = GEOMETRIES[arguments.geometry]
    base = build(geometry, device, dtype)
    base.generation_config.eos_token_id = None
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
    for per_image in arguments.per_image or (1, 2, 18):
        # The system sentence of a real template is part of every prompt: here the words before the question.
        head = " ".join(f"w{rng.randrange(5, 30000)}" for _ in range(SYSTEM_WORDS))
        questions = [
            Question(f"{i}-{q}", head + " " + " ".join(f"w{rng.randrange(5, 30000)}" for _ in range(words)), (image,))
            for i, image in enumerate(make_images(arguments.images))
            for q in range(per_image)
            for words in [rng.randint(*QUESTION_WORDS)]
        ]
        got: dict[str, list[str]] = {}

        def run_plain(questions: list[Question] = questions, got: dict[str, list[str]] = got) -> None:
            got["plain"] = plain_loop(loaded, questions)

        def run_engine(questions: list[Question] = questions, got: dict[str, list[str]] = got) -> None:
            replies = {reply.question.id: reply.text or "" for reply in engine.answer(questions)}
            got["engine"] = [replies[question.id] for question in questions]

        def run_repeated(questions: list[Question] = questions, got: dict[str, list[str]] = got) -> None:
            got["repeated"] = repeated_cache(engine, questions)

        variants = {"plain": run_plain, "engine": run_engine, "repeated": run_repeated}
        seconds = interleaved(variants, rounds=arguments.rounds, warmup=1, device=device)
        gain, gain_repeated = (ratio(seconds["plain"], seconds[name]) for name in ("engine", "repeated"))
        same, same_repeated = (
            sum(a == b for a, b in zip(got["plain"], got[name], strict=True)) for name in ("engine", "repeated")
        )
        per_second = {name: len(questions) / sorted(values)[len(values) // 2] for name, values in seconds.items()}
        results[per_image] = {
            "seconds": seconds, "gain": gain, "same": same, "questions": len(questions),
            "gain_repeated": gain_repeated, "same_repeated": same_repeated,
        }  # fmt: skip
        rows.append(
            [
                str(per_image),
                f"{per_second['plain']:.2f}",
                f"{per_second['engine']:.2f}",
                f"{gain['median']:.2f}x",
                f"{gain['min']:.2f}-{gain['max']:.2f}",
                f"{same}/{len(questions)}",
                f"{gain_repeated['median']:.2f}x",
                f"{same_repeated}/{len(questions)}",
            ]
        )
    where = setting(device)
    title = f"questions per second, {arguments.geometry}, {where['device']}, {arguments.dtype}, {NEW_TOKENS} new tokens"
    columns = ["per image", "plain loop", "m2pt", "gain", "spread", "same answers", "repeated cache", "same answers"]
    print(table(title, columns, rows))
    if not arguments.no_json:
        content = {"setting": where, "geometry": arguments.geometry, "dtype": arguments.dtype, "per_image": results}
        print(f"written to {write(f'answering-{arguments.geometry}-{device.type}', content)}")


if __name__ == "__main__":
    main()
