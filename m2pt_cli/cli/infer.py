"""``m2pt infer``: one question about one or several images, or JSONL questions to JSONL answers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.infer_progress import LineProgress
from m2pt_cli.cli.output import Output
from m2pt_cli.data.sample import IMAGE_MARK, BytesImage, ImageReference, image_reference
from m2pt_cli.errors import GenerationError, InputError, M2PTError, SettingsError
from m2pt_cli.generation.adapter_switcher import AdapterSwitcher
from m2pt_cli.generation.question_lines import QuestionLine, array_members, arriving, parse_line
from m2pt_cli.records import Answer
from m2pt_cli.settings import InferSettings

if TYPE_CHECKING:
    from m2pt_cli.generation.engine import Reply

# The most lines answered together: enough for full batches, few enough for short waits.
_MOST_LINES = 64
# Bytes read to find whether a file begins with a bracket.
_ARRAY_START = 4096
_MOST_STDIN_BYTES = 256 << 20


def answer_images(images: Sequence[str], question: str, settings: InferSettings, output: Output) -> int:
    """Ask one question about images given on the command line; return the exit code."""
    references = [named_image(image, Path(), allow_url=settings.allow_url) for image in images]
    for reference in references:
        reference.open()  # an unreadable image fails before the model is loaded
    switcher = _switcher(settings, output)
    switcher.open()
    from m2pt_cli.generation.engine import Question

    questions = [Question(str(number), question, (reference,)) for number, reference in enumerate(references, start=1)]
    started = time.monotonic()
    if _may_stream(questions, switcher, output):
        reply = switcher.stream(questions[0], lambda piece: output.text(output.clean(piece), end=""))
        output.text("")
        if reply.error is not None:
            raise GenerationError(f"no answer: {reply.error}")
        return 0
    answers = [
        Answer(
            int(reply.question.id),
            images[int(reply.question.id) - 1],
            question,
            candidate.name,
            reply.text,
            reply.error,
        )
        for candidate, reply in switcher.ask(questions)
    ]
    output.detail(
        f"{len(answers)} {'answer' if len(answers) == 1 else 'answers'} in {time.monotonic() - started:.2f} s"
    )
    failed = [answer for answer in answers if answer.error is not None]
    if len(failed) == len(answers):
        raise GenerationError(f"no answer: {failed[0].error}")
    _write_answers(answers, len(images), len(switcher.candidates), output)
    for answer in failed:
        output.warn(f"{answer.image}: {answer.error}")
    return 0


def answer_lines(source: str, settings: InferSettings, output: Output) -> int:
    """Answer JSONL questions as they arrive; return 3 if a line was invalid, else 0.

    Raises:
        InputError: the file can't be read.
        GenerationError: there were questions and none was answered.
    """
    folder = Path() if source == "-" else Path(source).parent
    lines = asked = answered = faulty = 0
    with _opened(source) as stream:
        switcher = _switcher(settings, output)
        opened = False
        with LineProgress(output) as progress:
            for batch in _batches(source, stream):
                if not opened:  # load the model when the first line arrives
                    switcher.open()
                    opened = True
                    progress.start()
                lines += len(batch)
                parsed = [parse_line(line, number) for number, line in batch]
                for answer, is_faulty in _answers(parsed, folder, switcher):
                    output.json(answer.to_dict())
                    asked += 1
                    answered += answer.error is None
                    faulty += is_faulty
                progress.update(lines, asked - answered)
    if faulty:
        output.warn(f"{faulty} of {lines} lines could not be asked; their error is in the output")
        return InputError.exit_code
    if asked and not answered:
        raise GenerationError(f"all {asked} questions failed; their errors are in the output")
    return 0


def _batches(source: str, stream: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    """Yield batches of numbered lines as they arrive, or the members of a file that is one JSON array."""
    if os.path.isfile(source):
        start = stream.read(_ARRAY_START).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        stream.seek(0)
        members = array_members(stream.read()) if start == b"[" else None
        if members is not None:
            yield from (members[first : first + _MOST_LINES] for first in range(0, len(members), _MOST_LINES))
            return
        stream.seek(0)
    yield from arriving(stream, most=_MOST_LINES)


def _answers(lines: Sequence[QuestionLine], folder: Path, switcher: AdapterSwitcher) -> Iterator[tuple[Answer, bool]]:
    """Yield the answers to a batch of lines in order, and whether the line was invalid."""
    from m2pt_cli.generation.engine import Question

    questions: dict[int, Question] = {}
    faults: dict[int, str] = {}
    for place, line in enumerate(lines):
        if line.error is not None or line.question is None:
            faults[place] = line.error or "no question"
            continue
        try:
            images: tuple[ImageReference, ...] = ()
            if line.image is not None:
                reference = image_reference(line.image, folder=folder, allow_url=switcher.settings.allow_url)
                reference.open()
                images = (reference,)
            questions[place] = Question(str(place), line.question, images)
        except M2PTError as error:
            faults[place] = error.message
    replies: dict[int, list[tuple[str | None, Reply]]] = {}
    for candidate, reply in switcher.ask(list(questions.values())):
        replies.setdefault(int(reply.question.id), []).append((candidate.name, reply))
    for place, line in enumerate(lines):
        if place in faults:
            yield Answer(line.id, line.image, line.question, None, None, faults[place], line.extra), True
        for name, reply in replies.get(place, ()):
            yield (
                Answer(line.id, line.image, line.question, name, reply.text, reply.error, line.extra),
                reply.is_faulty,
            )


def _write_answers(answers: Sequence[Answer], num_images: int, num_candidates: int, output: Output) -> None:
    """Print a plain answer, JSON, or a row per image and adapter: a table on a terminal, tab-separated in a pipe."""
    if output.is_json:
        for answer in answers:
            output.json(answer.to_dict())
        return
    if len(answers) == 1:
        output.text(output.clean(answers[0].answer or ""))
        return
    columns = [("image", num_images > 1), ("adapter", num_candidates > 1), ("answer", True)]
    header = [name for name, shown in columns if shown]
    empty = {"adapter": "bare base"}
    rows = [
        [output.clean(" ".join(str(getattr(answer, name) or empty.get(name, "-")).split())) for name in header]
        for answer in answers
    ]
    if sys.stdout.isatty():
        from m2pt_cli.cli.tables import FittingTable

        table = FittingTable()
        for title in header:
            table.add_column(title, left=True)
        for row in rows:
            table.add_row(*row)
        output.table(table)
    else:
        for row in rows:
            output.text("\t".join(row))


def _switcher(settings: InferSettings, output: Output) -> AdapterSwitcher:
    return AdapterSwitcher(settings, report=output.status, detail=output.detail)


def _may_stream(questions: Sequence[object], switcher: AdapterSwitcher, output: Output) -> bool:
    one = len(questions) == 1 and len(switcher.candidates) == 1
    return one and sys.stdout.isatty() and not output.is_json and switcher.settings.num_beams == 1


def named_image(image: str, folder: Path, *, allow_url: bool) -> ImageReference:
    """Return the reference of an image named on the command line; - is stdin.

    Raises:
        InputError: the image does not exist, or it is a URL and URLs are not allowed.
    """
    if image == "-":
        data = sys.stdin.buffer.read(_MOST_STDIN_BYTES + 1)
        if len(data) > _MOST_STDIN_BYTES:
            raise InputError(f"stdin brings more than {_MOST_STDIN_BYTES >> 20} MiB, which is no image")
        if not data:
            raise InputError("stdin brings no image", 'cat photo.jpg | m2pt infer - "..."')
        return BytesImage("-", data)
    return image_reference(image, folder=folder, allow_url=allow_url)


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        # A duplicate: Python aborts at exit if a thread still waits inside `sys.stdin` (after a closed pipe).
        yield os.fdopen(os.dup(sys.stdin.fileno()), "rb")
        return
    try:
        stream = open(source, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{source} can't be read: {error.strerror}", "check the path given to --input") from None
    with stream:
        yield stream


HELP = "Ask an adapter, or the bare base, about images."
EPILOG = "\n\n".join(
    [
        "Examples:",
        '  m2pt infer examples/images/shapes.png "What color is the circle?" --base nano',
        '  m2pt infer examples/images/*.png -q "Describe the image." --adapter runs/demo',
        "  m2pt infer --input examples/questions.jsonl --adapter runs/demo --adapter none",
        '  cat photo.jpg | m2pt infer - "Is there a chair?"',
        'An input line is {"image", "question", "id"}; a line of output adds "adapter", "answer" and "error".',
    ]
)

_ANSWERS = "Answers"


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE QUESTION", help="An image (- is stdin) and a question; with -q images alone."),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", metavar="TEXT", help="One question for all the images.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE", help="Questions as JSONL (- is stdin), answered as JSONL."),
    ] = None,
    adapter: options.AdaptersOption = None,
    base: options.BaseOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer.", rich_help_panel=_ANSWERS)
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="Sample; 0 is greedy.", rich_help_panel=_ANSWERS)
    ] = 0.0,
    num_beams: Annotated[
        int, typer.Option("--num-beams", metavar="N", help="Search with N beams.", rich_help_panel=_ANSWERS)
    ] = 1,
    allow_url: options.AllowUrlOption = False,
    template: options.TemplateOption = None,
    image_fit: options.ImageFitOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> int:
    output = Output.configure(json=json, quiet=quiet, verbose=verbose)
    settings = InferSettings(
        base=base,
        adapter=tuple(adapter or [os.environ["M2PT_ADAPTER"]] if adapter or os.environ.get("M2PT_ADAPTER") else ()),
        template=template,
        image_fit=image_fit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_beams=num_beams,
        allow_url=allow_url,
        device=device,
        dtype=dtype,
        seed=seed,
        threads=threads,
    )

    if input is not None:
        if words or question is not None:
            raise SettingsError("--input brings the images and the questions", "leave out IMAGE, QUESTION and -q")
        return answer_lines(input, settings, output)
    images, asked = _images_and_question(words or [], question)
    return answer_images(images, asked, settings, output)


def _images_and_question(words: list[str], question: str | None) -> tuple[list[str], str]:
    """Split the arguments into images and question."""
    if question is None and len(words) == 2:
        question, words = words[1], words[:1]
    if not words:
        raise SettingsError("no image to ask about", 'm2pt infer image.jpg "Is there a chair?"')
    if question is None:
        said = "an image without a question" if len(words) == 1 else f"{len(words)} words where IMAGE QUESTION is meant"
        raise SettingsError(said, 'm2pt infer image.jpg "Is there a chair?", or several images with -q "..."')
    if not question.strip():
        raise SettingsError("the question is empty", 'm2pt infer image.jpg "Is there a chair?"')
    if (marks := question.count(IMAGE_MARK)) > 1:
        raise SettingsError(
            f"the question holds {marks} {IMAGE_MARK} marks, and it is asked of one image", f"leave {IMAGE_MARK} out"
        )
    if words.count("-") > 1:
        raise SettingsError("- names stdin, which holds one image", "give - once")
    return words, question
