"""Random numbers as arguments: every draw is a function of (seed, epoch, key, stream) and of nothing else.

The same image in the same epoch gets the same draw in any process, batch, order or number of workers. blake2b hashes
the four into the key of a Philox counter generator, whose raw words numpy keeps stable across versions and platforms
(numpy.random.Philox, "raw stream compatibility").

A draw that has decided one choice says something about the next one, so every choice has a stream of its own.
"""

import hashlib

import numpy as np

# Changes whenever the same arguments choose other patches: scores of two versions are not of the same patches.
DRAWS_VERSION = 2

_ROWS_APART = 8  # every eighth row of an image is hashed; all rows would take 2.6 ms at 1024x768


def pixel_key(image: np.ndarray) -> str:
    """Returns a key that follows from the pixels of an image, uint8 (H, W, 3), alone.

    Evaluation draws by this key, so that an image has one score under any file name.
    """
    rows = np.ascontiguousarray(image[::_ROWS_APART])
    return f"{image.shape[0]}x{image.shape[1]}-{hashlib.blake2b(rows.data, digest_size=16).hexdigest()}"


def draw_random_bits(seed: int, epoch: int, key: str, stream: str, size: int) -> np.ndarray:
    """Draws independent uniform words of 64 bits, uint64 (size,), by any two integers and the name of the sample.

    The stream names what the draw is for ("select", "drop", ...), so that two uses do not share numbers.
    """
    text = f"{seed}\0{epoch}\0{stream}\0{key}".encode(errors="surrogateescape")  # file names may be any bytes
    random_bits = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype="<u8")
    return np.random.Philox(key=random_bits).random_raw(size)


def draw_uniform(seed: int, epoch: int, key: str, stream: str, size: int) -> np.ndarray:
    """Draws float64 (size,), uniform in [0, 1), each with 53 random bits; arguments as for `draw_random_bits`."""
    return (draw_random_bits(seed, epoch, key, stream, size) >> np.uint64(11)) * 2.0**-53


def draw_subset(seed: int, epoch: int, key: str, stream: str, size: int, count: int) -> np.ndarray:
    """Draws `count` of `size` places, every set equally likely; returns bool (size,), True where drawn."""
    drawn = np.ones(size, bool)
    if count < size:
        random_bits = draw_random_bits(seed, epoch, key, f"{stream} {DRAWS_VERSION}", size)
        # Not sorted: only the set of the smallest counts, and finding it takes a tenth of the time.
        drawn[np.argpartition(random_bits, count)[count:]] = False
    return drawn


def draw_order(seed: int, epoch: int, key: str, stream: str, size: int) -> np.ndarray:
    """Draws a uniform permutation, int64 (size,); the sort is stable, so that equal words leave one answer."""
    return np.argsort(draw_random_bits(seed, epoch, key, stream, size), kind="stable")
