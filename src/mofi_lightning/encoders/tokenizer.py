"""Texts to token ids: a byte-level BPE of one's own, CLIP's, or any `tokenizer.json`."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mofi_lightning.types import InputError, Tokens

FILE_NAME = "tokenizer.json"
_BOS, _EOS, _PAD = "<bos>", "<eos>", "<pad>"
_LENGTH_MULTIPLE = 8  # few distinct batch shapes, and what matrix units like
_CLIP_BPE_MERGES = 49152 - 256 - 2
_CHARACTERS_PER_TOKEN = 16  # more than three times as many as English has


class Tokenizer:
    """Texts to padded token ids, each text between a begin and an end token.

    Special tokens written out in a text are read as plain characters: no text can forge its end.

    Args:
        backend: a tokenizer whose post-processor puts one begin and one end token around a text; its padding
            settings name the padding token (without them, the end token pads).

    Raises:
        InputError: the post-processor does not.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        frame = backend.encode("").ids
        if len(frame) != 2:
            raise InputError(
                f"the tokenizer puts {len(frame)} special tokens around a text, not one on either side; "
                f"give its {FILE_NAME} a post-processor that does"
            )
        self.bos_id, self.eos_id = frame
        self.pad_id: int = backend.padding["pad_id"] if backend.padding else self.eos_id
        self._json = backend.to_str()
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self._backend.get_vocab_size()

    @classmethod
    def load(cls, path_or_name: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, a folder that holds one, CLIP's BPE ('clip'), or plain bytes ('bytes').

        Raises:
            InputError: no such file, or no tokenizer in it.
        """
        if path_or_name == "clip":
            return cls(_clip())
        if path_or_name == "bytes":
            return cls.train([], 259)
        path = Path(path_or_name)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"tokenizer {str(path)!r} does not exist; give a {FILE_NAME}, its folder, 'clip' or 'bytes'"
            )
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"tokenizer {str(path)!r}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Build from the contents of a `tokenizer.json`.

        Raises:
            InputError: the text describes no tokenizer.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"not a tokenizer's JSON: {error}") from error
        return cls(backend)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a lower-casing byte-level BPE; no text has unknown tokens.

        Args:
            texts: the corpus.
            vocab_size: the most token ids: 3 special ones, 256 bytes, the rest learned.

        Raises:
            InputError: `vocab_size` leaves no room for the bytes.
        """
        if vocab_size < 259:
            raise InputError(f"vocab_size {vocab_size} is too small: 256 bytes and 3 special tokens need 259")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        # transformers' CLIPTextModel treats the end token 2 in a way of its own: the end token is 1
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[_BOS, _EOS, _PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(_framed(backend, _BOS, _EOS, _PAD))

    def to_json(self) -> str:
        """The contents of a `tokenizer.json`."""
        return self._json

    def save(self, path: str | Path) -> None:
        """Write the `tokenizer.json` at `path` (inside it, if it is a folder)."""
        path = Path(path)
        (path / FILE_NAME if path.is_dir() else path).write_text(self._json, encoding="utf-8")

    def __call__(self, texts: Sequence[str], context_length: int) -> Tokens:
        """Tokenize `texts`.

        Args:
            texts: B texts.
            context_length: the most tokens a text may have, begin and end included; longer texts are cut and
                keep their end token.

        Returns:
            Tokens `[B, L]`; L is the longest text's length rounded up to a multiple of 8, at most
            `context_length`.
        """
        # one by one: encode_batch starts threads, which forked data-loader workers must not inherit
        rows = [self._ids(text, context_length) for text in texts]
        rows = [
            ids if len(ids) <= context_length else [*ids[: context_length - 1], self.eos_id] for ids in rows
        ]
        longest = max((len(ids) for ids in rows), default=2)
        length = min(context_length, -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
        is_token = np.arange(length) < np.array([len(ids) for ids in rows])[:, None]
        input_ids = np.full((len(rows), length), self.pad_id)
        input_ids[is_token] = [token for ids in rows for token in ids]
        return Tokens(torch.from_numpy(input_ids), torch.from_numpy(is_token.astype(np.int64)))

    def _ids(self, text: str, context_length: int) -> list[int]:
        """Ids of `text`, of a long one those of its beginning, which are right up to `context_length`.

        A cut disturbs the tokens of the word that it falls into. So the beginning counts only if it gives
        twice as many tokens as are used; what has very few tokens for its length is read on and on.
        """
        length = _CHARACTERS_PER_TOKEN * context_length
        while True:
            ids: list[int] = self._backend.encode(text[:length]).ids
            if length >= len(text) or len(ids) >= 2 * context_length:
                return ids
            length *= 2

    def __getstate__(self) -> str:
        return self._json

    def __setstate__(self, state: str) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state))  # type: ignore[misc]


def _framed(backend: tokenizers.Tokenizer, bos: str, eos: str, pad: str) -> tokenizers.Tokenizer:
    ids = {token: backend.token_to_id(token) for token in (bos, eos, pad)}
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(token, ids[token]) for token in (bos, eos)]
    )
    backend.enable_padding(pad_id=ids[pad], pad_token=pad)
    return backend


def _clip() -> tokenizers.Tokenizer:
    """CLIP's BPE (lower-casing, end-of-word suffix), from the merges file that open_clip ships.

    Mojibake and HTML escapes, which open_clip repairs first, are taken as they are.
    """
    # the file is found without importing open_clip, which would cost seconds
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "tokenizer 'clip' needs the merges file of open_clip; run: pip install open-clip-torch"
        )
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : _CLIP_BPE_MERGES + 1])]

    # what stands for the 256 bytes, in CLIP's order: those that print stand for themselves and come first
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(b) for b in (*printable, *range(256, 512 - len(printable)))]
    bos, eos = "<start_of_text>", "<end_of_text>"
    symbols = [*alphabet, *(s + "</w>" for s in alphabet), *("".join(pair) for pair in merges), bos, eos]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={symbol: number for number, symbol in enumerate(symbols)},
            merges=merges,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex("[\u2018\u2019\u02bc]"), "'"),
            normalizers.Replace(Regex("[\u201c\u201d]"), '"'),
            normalizers.Lowercase(),
        ]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([bos, eos])
    return _framed(backend, bos, eos, symbols[0])  # CLIP pads with id 0
