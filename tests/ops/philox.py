"""The random stream by its definition, in numpy: 64-bit integers and float64, nothing of the package."""

import numpy as np

WORD = np.uint64(0xFFFFFFFF)

# Random123's known answers of Philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox4x32(counter: np.ndarray, key: tuple[int, int], rounds: int = 10) -> np.ndarray:
    """Words uint64 [4, ...] of counters uint64 [4, ...]."""
    c0, c1, c2, c3 = counter
    k0, k1 = (np.uint64(k) for k in key)
    for _ in range(rounds):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (right >> np.uint64(32)) ^ c1 ^ k0,
            right & WORD,
            (left >> np.uint64(32)) ^ c3 ^ k1,
            left & WORD,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & WORD, (k1 + np.uint64(0xBB67AE85)) & WORD
    return np.stack([c0, c1, c2, c3])


def words(seed: int, configurations: list[int], examples: list[int], elements: np.ndarray, site: int) -> np.ndarray:
    """Words uint64 [K, N, E] of the stream, for any element indices."""
    k, n, e = np.meshgrid(*(np.asarray(i, np.uint64) for i in (configurations, examples, elements)), indexing="ij")
    counter = np.stack([e // np.uint64(4), n, k, np.full_like(k, site)])
    four = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return np.take_along_axis(four, (e % np.uint64(4))[None].astype(np.int64), 0)[0]


def box_muller(of_words: np.ndarray) -> np.ndarray:
    """Normals float64 [..., 4 q] of words [..., 4 q]: each two words make two."""
    u = (of_words >> np.uint64(8)).astype(np.float64) * 2.0**-24
    radius, angle = np.sqrt(-2 * np.log1p(-u[..., ::2])), 2 * np.pi * u[..., 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(of_words.shape)
