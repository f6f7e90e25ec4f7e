"""``m2pt attn-map``: figure, numbers, table and JSON; mistakes are reported before loading the model if possible."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.made_maps import made_maps, made_run
from fixtures.tiny_base import write_tiny_adapter, write_tiny_base
from PIL import Image

from m2pt_cli import AttnMapSettings, attention_map
from m2pt_cli.cli.app import main
from m2pt_cli.errors import SettingsError

LAYERS, VISION_LAYERS, PATCHES = 3, 3, 9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: str) -> list[str]:
    """M²PT with patches (2 and 3 prompts), M²PT with official tokens (4 and 5), and LoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    official = {"num_visual_prompts": 4, "num_textual_prompts": 5, "visual_tokens": "official"}
    return [
        str(write_tiny_adapter(folder / "patches", Path(base), seed=1)),
        str(write_tiny_adapter(folder / "official", Path(base), seed=2, **official)),
        str(write_tiny_adapter(folder / "lora", Path(base), method="lora", seed=3)),
    ]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.effect_mandelbrot((40, 26), (-2, -1, 1, 1), 30).convert("RGB").save(path)
    return str(path)


def look(image: str, *arguments: str, base: str, question: str = "is it a dog") -> int:
    options = ["--base", base, "--device", "cpu", "--max-new-tokens", "4", "--template", "plain"]
    return main(["attn-map", image, question, *arguments, *options])


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_numbers_and_shares_of_several_adapters(
    base: str, adapters: list[str], image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tmp_path / "map.npz"
    flags = [word for adapter in adapters for word in ("--adapter", adapter)]
    flags += ["--base-only", "--values", str(values), "--json"]
    assert look(image, *flags, base=base) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["output"], found["values"]) == (None, str(values))
    assert f"written: {values}" in err
    runs = found["runs"]
    assert [run["adapter"] for run in runs] == [*adapters, None]
    # 3 textual prompts; 5 of them and 3 projected visual ones; none.
    counts = [{name: group["tokens"] for name, group in run["language"]["groups"].items()} for run in runs]
    assert [count.get("textual_prompts", 0) for count in counts] == [3, 5, 0, 0]
    assert [count.get("visual_prompts", 0) for count in counts] == [0, 3, 0, 0]
    assert {count["image"] for count in counts} == {PATCHES}
    assert [run["vision"]["groups"].get("visual_prompts", {"tokens": 0})["tokens"] for run in runs] == [2, 4, 0, 0]
    assert [run["language"]["prompts"] is None for run in runs] == [False, False, True, True]
    for run in runs:
        for part, layers in (("language", LAYERS), ("vision", VISION_LAYERS)):
            shares = np.array([group["layers"] for group in run[part]["groups"].values()])
            assert shares.shape[1] == layers
            np.testing.assert_allclose(shares.sum(0), 1, atol=1e-4)
    with np.load(values, allow_pickle=False) as arrays:
        assert arrays["runs"].tolist() == [*adapters, "none"]
        prompts = arrays["run0.language.received"][:, 0, :3].sum(-1)
        np.testing.assert_allclose(prompts, runs[0]["language"]["prompts"]["layers"], atol=1e-5)
        # Query i sees 3 prompts and i + 1 real tokens.
        uniform = arrays["run0.language.uniform"]
        assert uniform[:3].sum() == pytest.approx(np.mean(3 / (4 + np.arange(len(uniform) - 3))), rel=1e-5)
        assert runs[0]["language"]["prompts"]["uniform"] == pytest.approx(uniform[:3].sum(), abs=1e-5)
    assert len({json.dumps(run["language"]) for run in runs}) == 4, "adapters that attend alike would prove nothing"


def test_a_figure_of_two(
    base: str, adapters: list[str], image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    widths = []
    for name, flags in (("one.png", []), ("two.png", ["--base-only"])):
        file = tmp_path / name
        arguments = ["--adapter", adapters[0], *flags, "-o", str(file), "--part", "overlay", "--json"]
        assert look(image, *arguments, base=base) == 0
        assert document(capsys)["output"] == str(file)
        widths.append(Image.open(file).width)
    assert widths[0] < widths[1] <= 1400  # 7 inches of 200 dots


def test_labels_and_title(
    base: str, adapters: list[str], image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "map.svg"
    flags = ["--adapter", adapters[0], "--base-only", "--label", f"{adapters[0]}=M²PT=ours", "--label", "none=Base"]
    assert look(image, *flags, "--title", "Figure 3", "-o", str(file), "--part", "overlay", base=base) == 0
    out, _ = capsys.readouterr()
    assert "M²PT=ours, language model" in out and "Base, language model" in out
    drawn = file.read_text()
    # An SVG's text is drawn as outlines, with the text beside them as a comment.
    for text in ("<!-- Figure 3 -->", "<!-- M²PT=ours", "<!-- Base"):
        assert text in drawn
    assert str(tmp_path) not in drawn and Path(adapters[0]).parent.name not in drawn
    assert look(image, *flags, "--json", base=base) == 0
    runs = document(capsys)["runs"]
    assert [(run["adapter"], run["label"]) for run in runs] == [(adapters[0], "M²PT=ours"), (None, "Base")]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["none"], "--label 'none' is not ADAPTER=TEXT"),
        (["other=A"], "--label 'other=A' begins with no adapter of this figure: runs/a=b, runs/a, none"),
        (["none= "], "--label 'none= ' has no text"),
        (["none=A", "none=B"], "--label names 'none' twice"),
        (["none=A", "runs/a=A"], "--label calls two adapters 'A'"),
    ],
)
def test_labels_that_name_nothing(labels: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        AttnMapSettings(
            image="a.png", question="?", adapter=("runs/a=b", "runs/a"), base_only=True, label=tuple(labels)
        )
    assert said in str(caught.value)


def test_a_label_of_a_path_with_an_equals_sign() -> None:
    settings = AttnMapSettings(
        image="a.png", question="?", adapter=("runs/a=b", "runs/a"), label=("runs/a=b=B", "runs/a=c")
    )
    assert settings.labels() == {"runs/a=b": "B", "runs/a": "c"}


def test_adapters_side_by_side_attend_as_alone(
    base: str, adapters: list[str], image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        look(image, "--adapter", adapters[1], "--adapter", adapters[0], "--adapter", "none", "--json", base=base) == 0
    )
    together = document(capsys)["runs"]
    for number, name in ((1, adapters[0]), (2, "none")):
        assert look(image, "--adapter", name, "--json", base=base) == 0
        assert document(capsys)["runs"] == [together[number]]


def test_layers_and_heads_of_the_tower(
    base: str, adapters: list[str], image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, figure = tmp_path / "map.npz", tmp_path / "map.png"
    flags = ["--adapter", adapters[0], "--part", "vision", "--values", str(values), "-o", str(figure), "--json"]
    chosen = ["--vision-layer", "0", "--vision-layer", "-1", "--vision-head", "1", "--vision-head", "0"]
    assert look(image, *flags, *chosen, base=base) == 0
    found = document(capsys)
    assert found["vision_heads"] == [1, 0]
    with np.load(values, allow_pickle=False) as arrays:
        by_head = arrays["run0.vision.by_head"]
        assert arrays["run0.vision.by_head.axes"].tolist() == ["layer", "head", "key"]
        assert arrays["run0.vision.head"].tolist() == ["1", "0"]
        assert by_head.shape[:2] == (VISION_LAYERS, 2)
        np.testing.assert_allclose(by_head.mean(1), arrays["run0.vision.received"], atol=1e-6)
    tall = Image.open(figure).height
    assert look(image, *flags, "--overwrite", base=base) == 0
    assert document(capsys)["vision_heads"] == []
    assert Image.open(figure).height < tall
    with np.load(values, allow_pickle=False) as arrays:
        # Two heads are all there are.
        np.testing.assert_allclose(arrays["run0.vision.by_head"][:, 0], by_head.mean(1), atol=1e-6)


def test_the_answer_is_that_of_infer(
    base: str, adapters: list[str], image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(image, "--adapter", adapters[0], "--json", "--part", "language", base=base) == 0
    run = document(capsys)["runs"][0]
    arguments = ["--adapter", adapters[0], "--base", base, "--device", "cpu", "--max-new-tokens", "4"]
    assert main(["infer", image, "is it a dog", "--template", "plain", *arguments]) == 0
    assert capsys.readouterr().out.strip() == run["answer"]
    assert len(run["tokens"]) == 4
    assert run["vision"] is None


def test_the_table(base: str, adapters: list[str], image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(image, "--adapter", adapters[0], base=base) == 0
    out, err = capsys.readouterr()
    for words in ("textual prompts (3)", "visual prompts (2)", "image (9)", "uniform", "times their uniform share"):
        assert words in out
    assert err == "", "no preview off a terminal"


def test_the_tower_alone_needs_no_answer(
    base: str, adapters: list[str], image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(image, "--adapter", adapters[0], "--part", "vision", "--json", base=base) == 0
    run = document(capsys)["runs"][0]
    assert run["answer"] is run["language"] is None
    assert run["vision"]["prompts"]["layers"]


def test_an_image_from_stdin(
    base: str, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(image, "--json", base=base) == 0
    expected = document(capsys)["runs"]

    class Stdin:
        buffer = io.BytesIO(Path(image).read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert look("-", "--json", base=base) == 0
    assert document(capsys)["runs"] == expected


def test_an_answer_of_nothing_is_the_end_of_the_sequence(
    base: str, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from m2pt_cli.generation import engine

    monkeypatch.setattr(engine, "answer_groups", lambda *_, **__: [[[]]])
    assert look(image, "--json", base=base) == 0
    run = document(capsys)["runs"][0]
    assert (run["answer"], run["tokens"]) == ("", ["</s>"])


def fails(capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: str, base: str, image: str) -> None:
    assert look(image, *arguments, base=base) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-o", "map.jpg"], 2, "--output map.jpg ends in '.jpg', not in .png, .svg, .pdf"),
        (["--values", "map"], 2, "--values map has no suffix"),
        (["--part", "visoin"], 2, "Did you mean 'vision'?"),
        (["--layer", "3"], 2, "has layers 0 to 2"),
        (["--layer", "1", "--layer", "-2"], 2, "--layer names one of 1, -2 twice"),
        (["--head", "-5"], 2, "has heads 0 to 3"),
        (["--vision-layer", "3"], 2, "come from layers 0 to 2"),
        (["--vision-layer", "1", "--vision-layer", "-2"], 2, "--vision-layer names one of 1, -2 twice"),
        (["--vision-head", "2"], 2, "has heads 0 to 1"),
        (["--token", "4"], 2, "--token 4: an answer of --max-new-tokens 4 has no such token"),
        (["--base-only", "--adapter", "none"], 2, "the same row"),
        (["--part", "prompts"], 2, "none of what is looked at has prompts"),
        (["-o", "no/such/map.png"], 2, "there is no folder no/such"),
        (["--layer", "0", "--layer", "1", "--layer", "2", "--head", "0", "--head", "1"], 0, ""),
        (
            [word for n in range(4) for word in ("--layer", str(n), "--head", str(n), "--token", str(n))],
            2,
            "64 overlays",
        ),
        (["--adapter", "no/adapter"], 4, "there is no folder no/adapter"),
    ],
)
def test_mistakes_are_met_before_the_model_is_loaded(
    base: str,
    image: str,
    arguments: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from m2pt_cli.models import load as loading

    class Loaded(Exception):
        pass

    def load_base(*_: Any, **__: Any) -> None:
        raise Loaded

    monkeypatch.setattr(loading, "load_base", load_base)
    if code == 0:
        with pytest.raises(Loaded):
            look(image, *arguments, base=base)
    else:
        fails(capsys, code, words, *arguments, base=base, image=image)


def test_marks_of_too_many_images_are_met_before_the_model_is_loaded(
    base: str, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from m2pt_cli.models import load as loading

    monkeypatch.delattr(loading, "load_base")
    assert main(["attn-map", image, "<image> or <image>", "--base", base, "--device", "cpu"]) == 3
    assert "the question holds 2 <image> marks for 1 images" in capsys.readouterr().err


def test_files_that_are_there_are_kept(
    base: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "map.json"
    file.write_text("mine")
    fails(capsys, 2, f"--values {file} exists already", "--values", str(file), base=base, image=image)
    assert file.read_text() == "mine"
    assert look(image, "--values", str(file), "--overwrite", "--part", "overlay", "--quiet", base=base) == 0
    assert json.loads(file.read_text())["runs"]


def test_images_and_tokens_that_are_not_there(
    base: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, 3, "image no.png does not exist", base=base, image="no.png")
    text = tmp_path / "text.png"
    text.write_text("no image")
    fails(capsys, 3, "not an image, or damaged", base=base, image=str(text))
    assert main(["attn-map", image]) == 2
    assert "an image without a question" in capsys.readouterr().err


def test_an_adapter_of_another_base(
    adapters: list[str], image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_base(tmp_path / "other", seed=5)
    fails(capsys, 4, "was trained on", "--adapter", adapters[0], base=str(other), image=image)


def test_flag_mistakes_need_no_torch(image: str) -> None:
    script = (
        "import sys; from m2pt_cli.cli.app import main; "
        f"code = main(['attn-map', {image!r}, 'q', '--base', 'nano', '--layer', '99']); "
        "print(code, [name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
    assert "the language model of nano has layers 0 to 4" in done.stderr


def test_from_python(base: str, adapters: list[str], image: str, tmp_path: Path) -> None:
    settings = AttnMapSettings(
        image=image,
        question="is it a dog",
        base=base,
        adapter=(adapters[0],),
        layer=(-1,),
        head=(1, -1),
        token=(0,),
        part=("overlay", "prompts"),
        output=tmp_path / "map.pdf",
        max_new_tokens=3,
        device="cpu",
    )
    maps = attention_map(settings)
    assert (maps.layers, maps.heads, maps.tokens) == ((2,), (1, 3), (0,))
    language = maps.runs[0].language
    assert language is not None
    assert language.by_head.shape == (LAYERS, 2, len(language.tokens))
    np.testing.assert_allclose(language.received, language.by_head.mean(1), rtol=1e-6)
    assert np.abs(language.by_head[:, 0] - language.by_head[:, 1]).max() > 1e-3
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")


def test_the_table_names_the_heads_it_is_of() -> None:
    from m2pt_cli.cli.attn_table import attention_tables

    run = made_run(heads=(1, 3))
    of_two, _ = attention_tables(made_maps(run, heads=(1, 3)))
    of_all, _ = attention_tables(made_maps())
    assert "language model (heads 1, 3): share" in str(of_two.renderables[0])  # type: ignore[union-attr]
    assert "language model: share" in str(of_all.renderables[0])  # type: ignore[union-attr]
