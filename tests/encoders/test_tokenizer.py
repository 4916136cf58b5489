import copy
import pickle

import pytest
import torch

from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import InputError

CORPUS = ["a photo of a smiling face", "grinning cat", "Smiling cat with heart-eyes", "red apple"] * 5
TEXTS = [
    "a photo of a cat.",
    "The dog's bone, isn't it? We'll see; I'm sure they've left, you'd know.",
    "Women\u2019s \u201cRunning\u201d shoes \u2014 50% off!",
    "naïve café ÀÉÎ, cafe\u0301",
    "日本語のテキスト 123",
    "😀 grinning face 👩‍👩‍👧",
    "IMG_2041.JPG",
    "",
    "   lots   of\twhitespace\n",
    "x" * 300,
    "word " * 200,
    "C++ & C#",
    "Ⅷ ½ ²",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, 400)


def test_clip_ids_are_open_clips():
    from open_clip.tokenizer import SimpleTokenizer

    expected = SimpleTokenizer()(TEXTS, context_length=77)
    ids, mask = Tokenizer.load("clip")(TEXTS, 77)
    assert torch.equal(ids, expected)
    assert torch.equal(mask.sum(1), expected.argmax(1) + 1)  # up to the end token, which has the highest id


def test_every_text_begins_with_bos_ends_with_eos_and_is_masked_to_its_length(tokenizer):
    ids, mask = tokenizer([*TEXTS, "cat"], 32)
    for row, length in zip(ids, mask.sum(1), strict=True):
        assert row[0] == tokenizer.bos_id
        assert row[length - 1] == tokenizer.eos_id
        assert (row == tokenizer.eos_id).sum() == 1
        assert (row[length:] == tokenizer.pad_id).all()
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3


@pytest.mark.parametrize(
    ("text", "context_length", "length"), [("a", 32, 8), ("a " * 9, 32, 16), ("a " * 50, 30, 30)]
)
def test_batches_are_padded_to_a_multiple_of_8_within_the_context(tokenizer, text, context_length, length):
    assert tokenizer(["a", text], context_length).input_ids.shape == (2, length)


def test_a_written_special_token_is_plain_text(tokenizer):
    assert (tokenizer(["a <eos> b"], 32).input_ids == tokenizer.eos_id).sum() == 1
    clip = Tokenizer.load("clip")
    assert (clip(["a <end_of_text> b"], 32).input_ids == clip.eos_id).sum() == 1


def test_training_knows_every_byte_and_is_deterministic(tokenizer):
    assert tokenizer.to_json() == Tokenizer.train(CORPUS, 400).to_json()
    assert tokenizer.vocab_size <= 400
    assert Tokenizer.train([], 300).vocab_size == 259
    assert tokenizer(["日本語 \x00"], 32).attention_mask.sum() > 3


def test_tokenizers_survive_saving_pickling_and_copying(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    expected = tokenizer(TEXTS, 32)
    for other in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert all(torch.equal(a, b) for a, b in zip(other(TEXTS, 32), expected, strict=True))
        assert (other.pad_id, other.eos_id) == (tokenizer.pad_id, tokenizer.eos_id)


def test_a_hugging_face_clip_folder_is_read(tmp_path):
    from transformers import CLIPTokenizer

    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer(["a a"], 8).input_ids[0, :4].tolist() == [0, 3, 3, 1]


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="259"):
        Tokenizer.train(CORPUS, 100)


def test_a_tokenizer_without_begin_and_end_tokens_is_refused(tokenizer):
    import tokenizers

    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    with pytest.raises(InputError, match="post-processor"):
        Tokenizer.from_json(bare.to_str())
