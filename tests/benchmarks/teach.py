"""How well `charm teach` ranks a whole folder after some answers of a simulated rater, and how fast its page is.

    uv run python -m tests.benchmarks.teach [--photos FOLDER] [--backbone NAME | --model FOLDER]
    uv run python -m tests.benchmarks.teach --speed 48

Without a folder, the built-in data's images; without a model, the built-in backbone untrained (its patch projection is
a DCT, the rest random). Each rater likes one thing: detail (log of the mean absolute Laplacian), colourfulness (Hasler
and Suesstrunk, 2003) or both (the mean of the two ranks). Stars are the fifths of that order, after normal noise on the
rank (NOISE of its range). Printed is the SRCC of the whole folder's ranking with the rule, without noise: mean and
standard deviation over raters, who differ in noise and in the order of the images.

--speed: that many images of 12 megapixels with DINOv2-small's shape (random weights); an answer and the next preview
while features are made, as the page asks for them, once a second, and as fast as it goes.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import cv2
import httpx
import numpy as np
import psutil
import simplejpeg
from threadpoolctl import threadpool_limits

from charm.app import teach
from charm.app.answers import Answers
from charm.app.image_folder import ImageFolder
from charm.app.journal import open_lines
from charm.app.learner import Learner
from charm.app.reading import load_scorer
from charm.app.server import bind, make_server
from charm.app.teach_page import LIMITS, build_teach_app
from charm.images.find import find_image_files, read_image
from charm.model.metrics import srcc
from charm.model.registry import build_model
from charm.model.solving import Features, Labels, choose_head, solve_head, try_heads
from charm.scorer import CharmScorer
from pipeline.datasets.demo_images import render_images
from tests.benchmarks.features import draw_jpeg

ANSWERS, RATERS, NOISE = (20, 50, 100, 200), 10, 0.15


def measure_detail(image: np.ndarray) -> float:
    return float(np.log(np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_16S)).mean() + 1e-6))


def measure_colourfulness(image: np.ndarray) -> float:
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    means, deviations = np.hypot(first.mean(), second.mean()), np.hypot(first.std(), second.std())
    return float(deviations + 0.3 * means)


def rank(values: np.ndarray) -> np.ndarray:
    """Ranks on 0..1."""
    return np.argsort(np.argsort(values)) / (len(values) - 1)


def rate(rule: np.ndarray, count: int, features: Features, seed: int) -> tuple[float, float]:
    """SRCC with the rule of the ranking after `count` answers, and of the stars themselves."""
    draws = np.random.default_rng(seed)
    rated = draws.permutation(len(rule))[:count]
    stars = np.floor(5 * (rule + draws.normal(0, NOISE, len(rule))).clip(0, 0.999))[rated] / 4
    known, labels = features.rows(rated), Labels(stars, np.arange(count), 0)
    chosen = choose_head(try_heads(known, labels))
    weights, bias = solve_head(known, labels, chosen)
    return srcc(features.of(chosen.layer, chosen.head) @ weights + bias, rule), srcc(stars, rule[rated])


def print_table(scorer: CharmScorer, photos: Path, out: Path) -> None:
    files, _ = find_image_files([str(photos)])
    folder = ImageFolder(scorer, str(photos), files, out)
    folder.look(threading.Event(), lambda: None)
    keys = list(folder.values)
    features = Features(folder.layers, folder.parts, np.stack([folder.values[key] for key in keys]))
    images = [read_image(folder.paths[key][0]) for key in keys]
    detail, colours = (
        rank(np.array([measure(one) for one in images])) for measure in (measure_detail, measure_colourfulness)
    )
    rules = {"detail": detail, "colourfulness": colours, "a mixture": rank(detail + colours)}
    print(f"{len(keys)} images, {scorer.config.model.backbone}, {RATERS} raters, noise {NOISE}")
    print(f"| rater | {' | '.join(map(str, ANSWERS))} | the stars themselves |")
    print("|---|" + "---|" * (len(ANSWERS) + 1))
    for name, rule in rules.items():
        found = np.array([[rate(rule, n, features, seed) for n in ANSWERS] for seed in range(RATERS)])
        cells = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in zip(*describe(found[..., 0]), strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {found[..., 1].mean():.2f} |")


def describe(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), values.std(axis=0, ddof=1)


def measure_speed(folder: Path, count: int) -> None:
    (folder / "photos").mkdir()
    for number in range(count):
        (folder / "photos" / f"{number}.jpg").write_bytes(draw_jpeg(number))
    with mock.patch.object(teach, "fetch_model", lambda config, *_: build_model(config, pretrained=False)):
        scorer = teach.start_scorer("vit_small_patch14_dinov2")
    files, _ = find_image_files([str(folder / "photos")])
    stop = threading.Event()
    waits: dict[str, list[float]] = {"once a second": [], "as fast as it goes": []}
    with open_lines(folder / "answers.jsonl", Answers) as answers, bind("127.0.0.1", 0) as bound:
        answers.load()
        learner = Learner(ImageFolder(scorer, str(folder / "photos"), files, folder), answers, {})
        server = make_server(build_teach_app(learner, lambda: None), LIMITS)
        jobs = [
            threading.Thread(target=learner.folder.look, args=(stop, learner.tell)),
            threading.Thread(target=learner.run, args=(stop,)),
            threading.Thread(target=server.run, kwargs={"sockets": [bound]}),
        ]
        started = time.perf_counter()
        for job in jobs:
            job.start()
        process = psutil.Process()
        before = sum(process.cpu_times()[:2])
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", trust_env=False, timeout=60) as client:
            first, peak = 0.0, 0.0
            while learner.folder.done < count:
                state = client.get("/state").json()
                if state["next"]:
                    first = first or time.perf_counter() - started
                    waits["once a second"].append(answer_next(client, state["next"]))
                peak = max(peak, sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
                time.sleep(1)
            seconds = time.perf_counter() - started
            computing = sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)]) - before
            while len(found := client.get("/state").json()["next"]) > 1:
                waits["as fast as it goes"].append(answer_next(client, found))
        server.should_exit = True
        stop.set()
        learner.tell()
        for job in jobs:
            job.join()
    print(
        f"{count} images: {seconds / count:.2f} s each, {computing / count:.2f} s of computing (all threads, the child)"
    )
    print(f"the first is shown after {first:.1f} s; peak {peak / 1e9:.2f} GB")
    for name, found in waits.items():
        if found:
            median, most = 1000 * np.median(found), 1000 * max(found)
            print(f"answer and next preview, {name}: median {median:.0f}, at most {most:.0f} ms")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def answer_next(client: httpx.Client, shown: list[dict[str, str]]) -> float:
    """Seconds from an answer until it is kept and the preview after it is there."""
    started = time.perf_counter()
    reply = client.post("/answer", json={"key": shown[0]["key"], "stars": 1 + int(shown[0]["key"], 16) % 5}).json()
    if reply["next"]:
        client.get(f"/image/{reply['next'][0]['key']}").raise_for_status()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--backbone", default="charm_demo")
    parser.add_argument("--model")
    parser.add_argument("--speed", type=int, metavar="IMAGES")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.speed:
            measure_speed(Path(folder), asked.speed)
            return
        photos = asked.photos or Path(folder, "photos")
        if not asked.photos:
            photos.mkdir()
            for one in render_images():
                data = simplejpeg.encode_jpeg(one.image, quality=95, colorsubsampling="444")
                (photos / f"{one.name}.jpg").write_bytes(data)
        scorer = load_scorer(asked.model) if asked.model else teach.start_scorer(asked.backbone)
        with threadpool_limits(1, "blas"):
            print_table(scorer, photos, Path(folder))


if __name__ == "__main__":
    main()
