"""What may import what, and one word per stage in its places."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from charm.inputs.settings import SETTINGS
from pipeline.settings.params import Params
from pipeline.work import code
from tests.imports import PACKAGES, ROOT, all_imports, import_closure

STAGES = ("manifest", "shards", "importance", "pos_embeds", "features", "train", "evaluate", "report")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")
# Each house may import itself and those before it; so may each room of charm/, and its modules beside the rooms.
HOUSES = ("charm", "pipeline", "stages")
ROOMS = (
    {"runtime"},
    {"images", "labels"},
    {"tokenization"},
    {"model", "saliency"},
    {"inputs"},
    {"hub", "drawing", "attribution", "export", "scores", "scorer", "onnx_scorer", "published"},
    {"app"},
    {"__init__", "__main__"},
)
# The one room that may import a heavy library.
HOMES = {
    "dask": "pipeline/work",
    "openpyxl": "pipeline/datasets",
    "segment_anything_hq": "charm/saliency",
    "skimage": "pipeline/datasets",
    "sklearn": "pipeline/datasets",
    "starlette": "charm/app",
    "transformers": "charm/saliency",
    "typer": "charm/app",
    "uvicorn": "charm/app",
}
# The method has no business with files, archives, settings, or models; what loads weights is pipeline and runtime.
METHOD = {"tokenization", "inputs"}
NOT_IN_METHOD = {
    *("argparse", "configparser", "glob", "io", "json", "os", "pathlib", "pickle", "pyarrow", "safetensors", "shutil"),
    *("sqlite3", "subprocess", "tarfile", "tempfile", "timm", "tomllib", "torch", "yaml", "zipfile", "PIL"),
}
# What belongs to the workshop.
NOT_IN_CHARM = {"dask", "distributed", "dvc", "fsspec", "ruamel", "tarfile", "webdataset"}


def tops(file: Path) -> set[str]:
    return {name.split(".")[0] for name in all_imports(file)}


def room_of(file: Path) -> str:
    """Of a file in charm/: its folder, or its own name beside the folders."""
    return file.parts[1].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(floor for floor, rooms in enumerate(ROOMS) if room in rooms)


def test_imports_run_one_way() -> None:
    strays = [
        f"{file} imports {name}"
        for file in FILES
        for name in all_imports(file)
        if name.split(".")[0] in HOUSES and HOUSES.index(name.split(".")[0]) > HOUSES.index(file.parts[0])
    ]
    assert strays == []


def test_rooms_of_charm_import_downhill() -> None:
    """Lazily, too. `charm` itself hands names on; what reads __version__ may import it."""
    strays = [
        f"{file} imports {name}"
        for file in FILES
        if file.parts[0] == "charm"
        for name in all_imports(file)
        if name.startswith("charm.") and floor_of(name.split(".")[1]) > floor_of(room_of(file))
    ]
    assert strays == []
    neighbours = [
        f"{file} imports {name}"
        for file in FILES
        if file.parts[0] == "charm" and len(file.parts) > 2
        for name in all_imports(file)
        if name.startswith("charm.") and name.split(".")[1] != room_of(file)
        if floor_of(name.split(".")[1]) == floor_of(room_of(file))
    ]
    assert neighbours == []


def test_heavy_libraries_have_one_home() -> None:
    found = {(library, "/".join(file.parts[:2])) for file in FILES for library in tops(file) & HOMES.keys()}
    assert found == set(HOMES.items())  # nor is a home empty, for which the test would pass for nothing


def test_the_method_knows_no_files() -> None:
    strays = [
        f"{file}: {sorted(tops(file) & NOT_IN_METHOD)}"
        for file in FILES
        if file.parts[0] == "charm" and room_of(file) in METHOD
        if tops(file) & NOT_IN_METHOD or "open(" in (ROOT / file).read_text() or "imread(" in (ROOT / file).read_text()
    ]
    assert strays == []


def test_charm_knows_no_workshop() -> None:
    strays = [
        f"{file}: {word}"
        for file in FILES
        if file.parts[0] == "charm"
        for word in (
            *sorted(tops(file) & NOT_IN_CHARM),
            *(w for w in ("params.yaml",) if w in (ROOT / file).read_text()),
        )
    ]
    assert strays == []


HEAVY = {*HOMES, "torch", "timm", "pyarrow", "huggingface_hub", "jinja2", "scipy"}
WORKSHOP = {"pipeline", "stages", "dvc", "dask", "ruamel", "webdataset"}
# What a process does that has imported nothing -> what it must not load: heavy libraries are loaded by who needs them.
# What another library imports counts, too.
FRESH: dict[str, set[str]] = {
    "import charm": HEAVY,
    "import charm; assert 'CharmTokenizer' in dir(charm); charm.CharmTokenizer": HEAVY,
    "import charm, numpy; charm.CharmTokenizer()(numpy.zeros((9, 9, 3), 'u1'))": HEAVY,
    "import charm.app.command": WORKSHOP,
    # `charm --help` does not wait for torch.
    "import charm.app.command; sys.argv = ['charm', '--help']; charm.app.command.main()": {
        *("torch", "timm", "cv2", "numpy", "pyarrow")
    },
    # A mistake in params.yaml is told at once: in under a second of computing, for others may use this machine.
    "import pipeline.settings.params as p; p.load_params(); assert time.process_time() - start < 1": {
        *("numpy", "torch", "dask", "pyarrow", "cv2")
    },
    "from stages import importance; from pipeline.settings.params import load_params; importance.main(load_params())": {
        *("transformers", "segment_anything_hq", "torch")
    },
    "from stages import features; from pipeline.settings.params import load_params; features.main(load_params())": {
        *("torch", "timm", "dask")
    },
    # What a worker does for each shard; webdataset would import torch in all of them.
    "import pathlib, pipeline.shards.write as w; w.write_shard(pathlib.Path('x'), [('k', {'a': b''})])": {
        *("torch", "timm", "webdataset", "pyarrow")
    },
    # SAM-HQ's library would change the timm of who trains.
    "import stages.train, stages.evaluate": set(HOMES),
    "import charm; [getattr(charm, name) for name in charm.__all__]": WORKSHOP,
}
# Each code in a fork of its own, and so without what the codes before it have imported. Only timm, which takes seconds,
# is imported once for all that may load it; they come last.
FORKS = """
import contextlib, io, json, os, sys, time, traceback
for number, (code, unwanted) in enumerate(json.load(sys.stdin)):
    if "torch" not in unwanted:
        import timm
    if os.fork() == 0:
        printed, start = io.StringIO(), time.process_time()
        try:
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                exec(code)
            found = sorted(set(unwanted) & set(sys.modules))
        except BaseException:
            found = traceback.format_exc()
        with open(f"{number}.json", "w") as file:
            json.dump([found, printed.getvalue()], file)
        os._exit(0)
    os.wait()
"""


def test_what_a_fresh_process_loads(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    ordered = sorted(FRESH, key=lambda code: "torch" not in FRESH[code])
    asked = json.dumps([(code, sorted(FRESH[code])) for code in ordered])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FORKS], cwd=tmp_path, env=environment, input=asked, text=True, check=True)
    told = {code: json.loads((tmp_path / f"{number}.json").read_text()) for number, code in enumerate(ordered)}
    assert {code: loaded for code, (loaded, _) in told.items() if loaded} == {}
    printed = {said for _, said in told.values() if said}
    help_page, no_features, nothing_to_make = sorted(printed)
    assert help_page.startswith("Usage: charm ")
    assert no_features == "features: none, since train.mode is fine_tune\n"
    assert nothing_to_make == "importance: the input charm with selection random reads no map\n"


def test_stages_are_those_of_dvc() -> None:
    assert tuple(PIPELINE["stages"]) == STAGES


def test_what_a_stage_imports_lies_within_its_deps() -> None:
    templates = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.jinja")
    }
    gone, strays, in_vain = [], [], []
    for stage in STAGES:
        listed = [dep for dep in map(str, PIPELINE["stages"][stage]["deps"]) if dep.split("/")[0] in PACKAGES]
        gone += [f"{stage}: {dep}" for dep in listed if not (ROOT / dep).exists()]
        files = import_closure(f"stages.{stage}")
        read = {name for name in templates if any(Path(name).name in (ROOT / file).read_text() for file in files)}
        within = {name: [dep for dep in listed if name == dep or name.startswith(f"{dep}/")] for name in files | read}
        strays += [f"{stage}: {name}" for name, rooms in within.items() if not rooms]
        used = {room for rooms in within.values() for room in rooms}
        in_vain += [f"{stage}: {dep}" for dep in listed if dep not in used]
    assert (gone, strays, in_vain) == ([], [], [])


def test_one_word_in_all_its_places() -> None:
    sections, written = {field.name for field in fields(Params)}, YAML(typ="safe").load(ROOT / "params.yaml")
    strays = []
    for stage in STAGES:
        description = PIPELINE["stages"][stage]
        folder = "runs" if stage in ("train", "evaluate", "report") else "data"
        places = {
            "command": description["cmd"] == f"python -m stages.{stage}",
            "section of Params": stage in sections,
            "section of params.yaml": stage in written,
            "output": description["outs"] == [f"{folder}/{stage}"],
            "test file": (ROOT / "tests" / "stages" / f"test_{stage}.py").is_file(),
        }
        strays += [f"{stage}: {place}" for place, is_so in places.items() if not is_so]
    assert strays == []


def test_no_setting_stands_in_an_output_a_command_or_a_key_of_params() -> None:
    """DVC removes outputs before a stage could refuse a setting: `../../photos` would be gone."""
    for stage in PIPELINE["stages"].values():
        assert "$" not in str([stage["outs"], stage["cmd"], stage["params"]])


def test_stage_scripts_are_stages_and_nothing_else() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {*STAGES, "__init__"}


def test_every_folder_that_a_stage_reads_is_some_stages_out() -> None:
    made = [out for stage in PIPELINE["stages"].values() for out in stage["outs"]]
    deps = {str(dep) for stage in PIPELINE["stages"].values() for dep in stage["deps"]}
    read = [dep for dep in deps if dep.startswith(("data/", "runs/"))]
    assert [dep for dep in read if not any(dep.startswith(out) for out in made)] == []


def test_every_plot_has_an_id_of_its_own() -> None:
    names = [name for plot in PIPELINE["plots"] for name in plot]
    assert len(names) == len(set(names)) == 3
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 210


def test_every_room_says_what_it_is_for() -> None:
    rooms = [file.parent for file in FILES if file.name == "__init__.py" and file.parent.as_posix() not in PACKAGES]
    silent = [room for room in rooms if len((ROOT / room / "__init__.py").read_text().split()) < 15]
    assert silent == []


def test_no_drawer_for_odds_and_ends() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [file for file in FILES if vague & {file.stem, *file.parts[:-1]}] == []


def test_modules_that_change_no_result_are_those_of_the_list() -> None:
    assert set(code.NO_RESULT) <= set(code.import_closure("stages.train"))


def test_an_input_is_asked_and_not_recognized() -> None:
    """What differs between inputs is an attribute: no class and no name of an input is compared outside its module."""
    names = "|".join(SETTINGS)
    compared = re.compile(
        rf'(==|!=|\bin\b\s*[(\[{{]?)\s*"({names})"|"({names})"\s*(==|!=)|isinstance\([^()]*(Tokenizer|Input)\b'
    )
    strays = [
        f"{file}: {found[0]}"
        for house in HOUSES
        for file in sorted((ROOT / house).rglob("*"))
        if file.suffix in (".py", ".jinja", ".html")
        for found in compared.finditer(file.read_text())
    ]
    assert strays == []
