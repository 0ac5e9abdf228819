"""``bench report``: figures as they were measured, pictures, the files that it fills, and bad input."""

import copy
import json
import re
import statistics
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_results import made, stored

from bcos_kernels.cli import main
from bcos_kernels.cli.bench import console, page, plots, render, report, results, tables

ROOT = Path(__file__).resolve().parent.parent
README = "top\n<!-- headline -->\nold\n<!-- /headline -->\nend\n"
PAGE = "top\n<!-- table -->\nold\n<!-- /table -->\nend\n"


def run_report(*arguments) -> int:
    return main(["bench", "report", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    return [stored(tmp_path / "cpu.json", made()), stored(tmp_path / "gpu.json", made(gpu=True))]


def geomean_of_ratios(run, measure, a, b, model=None):
    """By another way than the report's."""
    logs = []
    for row in run["rows"]:
        if row["scope"] == "layer" and row["measure"] == measure and model in (None, row["model"]):
            one, other = (np.array(row["contenders"][name]["samples"]) for name in (a, b))
            logs.append(np.log(np.median(one / other)))
    return float(np.exp(np.mean(logs)))


# ------------------------------------------------------------------------------------------------ tables


def test_goals_are_the_medians_of_paired_ratios():
    lines = tables.goals(made()).markdown()
    for words, args, goal in (
        ("forward, ours ÷ plain: ResNet-50 convolutions", ("forward", "ours", "plain", "resnet50"), "≤ 1.08"),
        ("forward, ours ÷ plain: ViT-S linears", ("forward", "ours", "plain", "vit_s"), "≤ 0.65"),
        ("explanation, ours ÷ plain", ("explanation", "ours", "plain"), "≤ 1.10"),
        ("forward + backward, torch.compile(reference) ÷ ours", ("training", "compiled", "ours"), "≥ 1.3"),
    ):
        figure = geomean_of_ratios(made(), *args)
        sign, bound = goal.split()
        met = figure <= float(bound) if sign == "≤" else figure >= float(bound)
        assert f"| {words} | {figure:.2f} | {goal} | {'met' if met else 'missed'} |" in lines


def test_the_worst_layer_is_named():
    run = made()
    rows = results.main_rows(run, "layer", "forward")
    ours = {r["workload"]: results.ratio(r, "ours", "plain") for r in rows}
    worst = max(ours, key=ours.__getitem__)
    assert f"worst layer | {ours[worst]:.2f} | ≤ 1.25 | met | {worst} |" in tables.goals(run).markdown()


def test_goals_of_what_was_not_measured_have_no_line():
    run = made() | {"rows": [r for r in made()["rows"] if r["model"] == "vit_s" and r["scope"] == "layer"]}
    goals = [row[0] for row in tables.goals(run).rows]
    assert "forward, ours ÷ plain: ViT-S linears" in goals and not any("ResNet-50" in what for what in goals)


def test_share_of_the_roof():
    rows = results.main_rows(made(), "layer", "training")
    floors = [r["floor"]["seconds"] / statistics.median(r["contenders"]["ours"]["samples"]) for r in rows]
    share = statistics.geometric_mean(floors)
    assert f"forward + backward, share of the roof reached | {share:.2f} |" in tables.goals(made()).markdown()
    assert tables.every_layer(made()).markdown().count("%") == 2 * len(results.main_rows(made(), "layer"))


def test_gpu_has_its_own_goals_memory_and_host_time():
    run = json.loads(json.dumps(made(gpu=True))) | {"host": [{"layer": "linear", "measure": "forward", "above": 12.5}]}
    for row in results.main_rows(run, "model", "training"):
        row["contenders"]["plain"]["peak"], row["contenders"]["ours"]["peak"] = 1 << 30, 3 << 29
    text = report.table(run)
    assert "forward, torch.compile(reference) ÷ ours" in text and "| ≥ 3.5 | missed |" in text
    assert "host time of a call above plain, µs: worst | 12.50 | ≤ 15 | met | linear, forward |" in text
    assert "peak memory, ours ÷ plain: models | 1.50 |" in text and "1024 MiB | – | 1536 MiB" in text
    assert "NVIDIA H200 (driver 570.1)" in text


def test_gpu_has_goals_for_the_step_of_a_network():
    row = next(r for r in results.main_rows(made(gpu=True), "model", "training") if r["workload"] == "resnet50")
    lines = tables.goals(made(gpu=True)).markdown()
    for words, pair, goal in (
        ("ours ÷ plain", ("ours", "plain"), "≤ 0.95"),
        ("torch.compile(reference) ÷ ours", ("compiled", "ours"), "≥ 2"),
    ):
        figure = results.ratio(row, *pair)
        met = figure <= 0.95 if pair[0] == "ours" else figure >= 2
        verdict = "met" if met else "missed"
        assert f"| ResNet-50 training, {words} | {figure:.2f} | {goal} | {verdict} | batch {row['batch']} |" in lines


def test_headline_table():
    row = next(r for r in results.main_rows(made(), "model", "training") if r["workload"] == "vit_s")
    step = statistics.median(row["contenders"]["ours"]["samples"])
    line = next(line for line in tables.headline(made()).markdown().splitlines() if "ViT-S" in line)
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1] == "ViT-S, batch 8" and cells[5] == f"**{tables.duration(step)}**"
    assert cells[6] == f"**{results.ratio(row, 'ours', 'plain'):.2f}**"
    assert cells[7] == f"{results.ratio(row, 'reference', 'ours'):.2f}"
    assert cells[8] == f"**{1.08**2:.2f}** ({1.9**2:.2f})" and cells[9] == "**6.0e-05** (6.0e-05)"


@pytest.mark.parametrize(
    "value, bound, text",
    [
        (1.0002, "≤ 1.00", "1.0002"),
        (0.9998, "≤ 1.00", "1.00"),
        (1.699, "≥ 1.7", "1.699"),
        (2.0, "", "2.00"),
    ],
)
def test_a_figure_does_not_contradict_its_verdict(value, bound, text):
    assert tables.beside(value, bound) == text


def test_headings_tell_runs_apart():
    assert results.covered(made()) == "layers and models, with compiled"
    rows = [row for row in results.main_rows(made(), "model", "training") if row["group"] == "ViT-S"]
    assert results.covered(made() | {"rows": rows}) == "training of ViT-S, with compiled"
    paired = [row | {"contenders": row["contenders"] | {"ours pairs": row["contenders"]["ours"]}} for row in rows]
    assert results.covered(made() | {"rows": paired}) == "training of ViT-S, with compiled, ours pairs"
    half = made() | {"settings": made()["settings"] | {"dtype": "bf16"}}
    assert results.covered(half | {"rows": rows}) == "training of ViT-S in bf16, with compiled"


def test_a_row_without_any_contender_adds_none():
    rows = results.main_rows(made(), "model", "training")
    refused = rows[0] | {"contenders": {}, "refused": {results.EVERY: "its own error is too large"}}
    assert results.order([refused, *rows]) == results.order(rows)
    assert tables.every_model(made() | {"rows": [refused, *rows]}).head == tables.every_model(made()).head


def test_the_headline_has_no_column_of_a_contender_that_nobody_timed():
    run = copy.deepcopy(made())
    for row in run["rows"]:
        row["contenders"].pop("compiled", None)
    assert "compiled" in tables.headline(made()).head and "compiled" not in tables.headline(run).head


@pytest.mark.parametrize("value, text", [(2.5, "2.50 s"), (0.0123, "12.3 ms"), (4.56e-4, "456 µs"), (None, "–")])
def test_durations(value, text):
    assert tables.duration(value) == text


def test_everything_says_where_it_comes_from():
    run = made() | {"commit": made()["commit"] + "+changes", "not_measured": ["vit_s, training", "a curve"]}
    text = report.table(run)
    for part in ("AMD EPYC, 2 threads", "torch 2.13.0", "fp32, channels_last, batch 8", "copies 20 GB/s"):
        assert part in text
    assert "`python -m bcos_kernels bench` at commit 431f4d43a6+changes, 2026-11-21" in text
    assert "Not measured: vit_s, training; a curve." in text
    assert "Interrupted: rows are missing." in report.table(made() | {"complete": False})
    assert "Complete." in report.table(made())
    assert "batch 8 (layers), 4 (models)" in report.table(
        made() | {"settings": made()["settings"] | {"batch": {"layers": 8, "models": 4}}}
    )


def test_refused_contenders_have_a_reason_and_no_figure():
    run = json.loads(json.dumps(made()))
    row = run["rows"][0]
    del row["contenders"]["ours"]
    row["refused"] = {"ours": "relative error 1.0e-02 of output 0 is above 1.3e-07"}
    text = report.table(run)
    assert f"- ours refused: {row['refused']['ours']}: {row['workload']} (forward)" in text
    line = next(line for line in text.splitlines() if line.startswith(f"| {row['workload']} | forward |"))
    assert line.split("|")[6].strip() == "–"
    assert "| 47 layers |" in text


def test_a_row_of_which_nothing_was_timed_is_read(tmp_path):
    run = made() | {"rows": [*made()["rows"][:3], made()["rows"][3] | {"contenders": {}, "refused": {"ours": "no"}}]}
    assert "ours refused: no" in report.table(results.read(Path(stored(tmp_path / "a.json", run))))


def test_averages_of_each_model():
    line = next(line for line in tables.by_group(made()).markdown().splitlines() if line.startswith("| ViT-S"))
    figures = [
        geomean_of_ratios(made(), measure, a, b, "vit_s")
        for a, b in (("ours", "plain"), ("reference", "ours"), ("compiled", "ours"))
        for measure in ("forward", "explanation", "training")
    ]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [f"{figure:.2f}" for figure in figures]
    assert "| 32 |" in line


# ------------------------------------------------------------------------------------------------ everything at once


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder in which the command has filled README.md and docs/page.md, stored pictures and a table."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "docs").mkdir()
    (folder / "README.md").write_text(README)
    (folder / "docs" / "page.md").write_text(PAGE)
    layers = made() | {"rows": [row for row in made()["rows"] if row["scope"] == "layer"]}
    files = [stored(folder / "cpu.json", layers), stored(folder / "gpu.json", made(gpu=True))]
    texts = "--readme", folder / "README.md", folder / "docs" / "page.md", "--markdown", folder / "r.md"
    assert run_report(*files, *texts, "--plots", folder / "pictures", "--html", folder / "r.html") == 0
    return folder


def test_readme_and_page_are_filled(written):
    top, page = ((written / name).read_text() for name in ("README.md", "docs/page.md"))
    for text in (top, page):
        assert "old" not in text and text.startswith("top\n") and text.endswith("end\n")
    assert "![Cost relative to the plain network of the same shape](pictures/gpu-headline.png)" in top
    assert "NVIDIA H200" in top and "ResNet-50, batch 8" in top and "<details>" not in top
    assert "../pictures/cpu-layers.png" in page and "headline" not in page
    for place, text in ((written, top), (written / "docs", page)):
        links = re.findall(r"!\[.*?\]\((.*?)\)", text)
        assert links and all((place / link).is_file() for link in links)
    both = (written / "r.md").read_text()
    assert both.count("### ") == 2 and both.count("<details>") == 3


def test_pictures_are_stored(written):
    found = {path.name: path.read_bytes() for path in (written / "pictures").iterdir()}
    stems = {"cpu-layers", "cpu-roofline", *(f"gpu-{picture}" for picture in plots.PICTURES)}
    assert set(found) == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    for stem in stems:
        png = found[f"{stem}.png"]
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) < 150_000
        width, height = struct.unpack(">II", png[16:24])
        assert width == pytest.approx(plots.WIDTH * render.DPI, abs=1) and 500 < height < 1.2 * width
        assert ElementTree.fromstring(found[f"{stem}.svg"]).tag == f"{render.SVG}svg"


def test_an_svg_tells_what_each_point_and_bar_is(written):
    layers, bars = (
        [e.text for e in ElementTree.parse(written / "pictures" / f"gpu-{name}.svg").iter(f"{render.SVG}title")]
        for name in ("layers", "headline")
    )
    for row in results.main_rows(made(gpu=True), "layer", "training"):
        assert f"{row['workload']}: bcos_kernels {results.ratio(row, 'ours', 'plain'):.2f}" in layers
    (row,) = (r for r in results.main_rows(made(gpu=True), "model", "training") if r["workload"] == "vit_s")
    assert f"ViT-S: reference {results.ratio(row, 'reference', 'plain'):.2f}" in bars


def test_the_page_needs_nothing_beside_it(written):
    text = (written / "r.html").read_text()
    assert not re.search(r"(src|href)=.?[\"'](?!#)", text) and "http" not in text
    assert text.count("<svg") == text.count("</svg>") == 2 + len(plots.PICTURES)
    ids = re.findall(r' id="([^"]+)"', text)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)
    assert {i.partition("-")[0] for i in ids} == {"0", "1"}, "ids of two results would be confused"
    assert text.count("<table>") == text.count("</table>") == 7 and "**" not in text
    assert "AMD EPYC, 2 threads" in text and "NVIDIA H200" in text
    assert page.HELP in text and "tbody tr:hover" in text and 'type="search"' in text


# ------------------------------------------------------------------------------------------------ on a terminal


@pytest.fixture
def printed(monkeypatch, capsys):
    """``printed(parts, width)`` is what a terminal of so many columns shows."""

    def show(parts, width):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        console.show(parts)
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_tables_that_fit(width, printed):
    """Every cell of a row stands there, in one table or in several."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed(report.parts(made()), width))
    assert max(map(len, text.splitlines())) <= width
    assert "|" not in text and "---" not in text and "<details>" not in text and "**" not in text
    (table,) = (part for part in report.parts(made()) if isinstance(part, tables.Table) and part.head[0] == "layer")
    cells = next(row for row in table.rows if row[1] == "training")
    lines = [line for line in text.splitlines() if line.split()[:2] == list(cells[:2])]
    expected = [" ".join(cells[i] for i in columns) for columns in console.fitting(table, width)]
    assert [" ".join(line.split()) for line in lines] == expected


def test_a_table_is_split_between_columns_and_keeps_its_names():
    table = tables.Table(("name", "first", "second", "third"), [("a", "1", "22", "333")], frozenset({1, 2, 3}))
    assert console.fitting(table, 80) == [[0, 1, 2, 3]]
    assert console.fitting(table, 23) == [[0, 1, 2], [0, 3]]
    assert console.fitting(table, 1) == [[0, 1], [0, 2], [0, 3]]


def test_a_terminal_without_rich_gets_markdown(printed, monkeypatch):
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    assert printed(report.parts(made()), 80) == report.table(made())


# ------------------------------------------------------------------------------------------------ the command


def test_a_run_without_models_leaves_the_headline_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "PICTURES", {"layers": plots.layers})
    readme = tmp_path / "README.md"
    readme.write_text(README + PAGE)
    run = made() | {"rows": results.main_rows(made(), "layer", "forward")}
    assert run_report(stored(tmp_path / "a.json", run), "--readme", readme, "--no-layers") == 0
    text = readme.read_text()
    assert "<!-- headline -->\nold\n<!-- /headline -->" in text and "<details>" not in text
    assert "![Time of each layer relative to the plain layer](a-layers.png)" in text
    assert (tmp_path / "a-layers.png").is_file()


def test_readme_and_docs_have_the_markers():
    for name, file in (("headline", "README.md"), ("table", "docs/benchmarks.md")):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory"),
        ("{half", "no JSON (Expecting property name"),
        ("[1]", "has no schema, and schema 2 is needed: repeat the run with python -m bcos_kernels bench"),
        ('{"layers": []}', "has no schema, and schema 2 is needed"),
        ('{"schema": 3, "rows": []}', "has schema 3, and schema 2 is needed"),
        ('{"schema": 2, "rows": []}', "has no rows, nothing was measured"),
        ('{"schema": 2, "rows": [{"workload": "a"}]}', "a row of schema 2 lacks 'measure'"),
        (
            '{"schema": 2, "rows": [{"scope": "layer", "workload": "a", "measure": "forward", "batch": 8, '
            '"contenders": {"ours": {"samples": [1, 2]}, "plain": {"samples": [1]}}}]}',
            "row a, forward: every contender needs a positive time for each round",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    assert run_report(path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bcos_kernels bench report: {path}: ") and message in error and error.count("\n") == 1


def test_missing_markers_change_nothing(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "PICTURES", {})
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    readme.write_text(README)
    page.write_text("nothing\n")
    assert run_report(files[0], "--readme", readme, page) == 2
    error = capsys.readouterr().err
    assert f"{page}: the markers <!-- headline --> and <!-- /headline --> or <!-- table -->" in error
    assert readme.read_text() == README and page.read_text() == "nothing\n"


def test_files_of_one_name_are_refused(files, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    assert run_report(files[0], stored(tmp_path / "other" / "cpu.json", made())) == 2
    assert "names that differ are needed" in capsys.readouterr().err


def test_without_matplotlib_tables_are_made_and_pictures_refused(files, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "bcos_kernels.cli.bench.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_report(files[0]) == 0
    assert "| measured | figure |" in capsys.readouterr().out
    assert run_report(files[0], "--plots", tmp_path) == 2
    refused = "bench report: needs matplotlib, not installed here: pip install 'bcos_kernels[explain]' torch=="
    assert refused in capsys.readouterr().err
