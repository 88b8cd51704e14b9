"""Texts in WikiText-2's layout, of a few kilobytes."""

import torch

PARTS = {"train": (60, 0), "valid": (40, 1), "test": (30, 2)}  # lines, and the seed


def make_wikitext2(data_dir, parts=tuple(PARTS)):
    """``DIR/wikitext2/train.txt``, ...: lines of words that follow one another by chance; each part has own words."""
    folder = data_dir / "wikitext2"
    folder.mkdir(parents=True)
    for name in parts:
        lines, seed = PARTS[name]
        draw = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 4, (lines, 12), generator=draw)
        words = [[f"w{place % 9}" for place in line] for line in steps.cumsum(1).tolist()]
        text = "".join(f" {' '.join(line)} <unk> of{name}\n" for line in words)
        (folder / f"{name}.txt").write_text(text)
    return data_dir
