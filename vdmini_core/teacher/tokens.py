"""A CLIP tokenizer made on the spot: every byte, and pairs merged as often as a few texts hold them.

Byte-pair encoding (Sennrich et al., arXiv 1508.07909) on the captions of procedural clips, so that a caption
fits a text encoder of 77 tokens. A pure function of the texts: no file of anybody's vocabulary is needed.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from vdmini_core.data.captions import scene_caption
from vdmini_core.data.procedural import ProceduralSpec, draw_scene

END = "</w>"  # of a word, as CLIP marks it
SPACE = "▁"  # before a word, as SentencePiece marks it
START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
LEARNED_FROM = 400  # captions a level
MERGES = 500

Word = tuple[str, ...]


def caption_tokenizer(length: int = 77) -> Any:
    """A `CLIPTokenizer` that knows the words of procedural captions; other words come in pieces.

    Args:
        length: of the text encoder, in tokens.
    """
    from transformers import CLIPTokenizer

    merges = learn_merges(_captions(), MERGES)
    letters = list(_byte_letters())
    tokens = [*letters, *(letter + END for letter in letters), *map("".join, merges), START_TEXT, END_TEXT]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer: Any = CLIPTokenizer
    return tokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, one pair after the other; of equal ones the first by the alphabet."""
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+|[^\sa-z]", text.lower()))
    split: dict[Word, int] = {(*word[:-1], word[-1] + END): n for word, n in words.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts, n in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {_merged(parts, best): n for parts, n in split.items()}
    return merges


def _merged(parts: Word, pair: tuple[str, str]) -> Word:
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


def _captions() -> Iterable[str]:
    for level in ("easy", "normal", "hard"):
        spec = ProceduralSpec(level=level)
        yield from (scene_caption(draw_scene(spec, seed)) for seed in range(LEARNED_FROM))


def _byte_letters() -> Iterable[str]:
    """A printable letter for each of the 256 bytes, as byte-level encoders (GPT-2, CLIP) write them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return (chr(byte) if byte in plain else chr(next(spare)) for byte in range(256))


def word_tokenizer(length: int = 512) -> Any:
    """A `T5Tokenizer` whose pieces are the words and letters of procedural captions.

    Args:
        length: of the longest prompt, in tokens.
    """
    from transformers import T5Tokenizer

    words = Counter(word for text in _captions() for word in text.lower().split())
    letters = sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz,."))
    pieces = [*(SPACE + word for word in sorted(words)), SPACE, *letters]
    scored = [(piece, -float(number)) for number, piece in enumerate(["<pad>", "</s>", "<unk>", *pieces])]
    tokenizer: Any = T5Tokenizer
    return tokenizer(vocab=scored, extra_ids=0, model_max_length=length)
