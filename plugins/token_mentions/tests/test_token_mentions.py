import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, BertModel, PreTrainedTokenizerFast

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.texts.mentions import MentionDetector, find_all
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError
from mofi_token_mentions import TokenClassifierDetector

PEOPLE = ("ada lovelace", "alan turing", "grace hopper", "kurt", "emmy")
PLACES = ("london", "new york", "the hague", "oslo")
FRAMES = ("a photo of {} in {}", "{} visits {}", "portrait of {} , {}", "{} at home in {} with a dog")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
POSITIONS = 32


@pytest.fixture(scope="module")
def knowledge_base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    entities = [Entity(f"Q{number}", name) for number, name in enumerate((*PEOPLE, *PLACES))]
    return build_knowledge_base(entities, tmp_path_factory.mktemp("base") / "knowledge_base")


def sentence(frame: str, person: str, place: str) -> tuple[list[str], list[int]]:
    words: list[str] = []
    labels: list[int] = []
    kinds = iter(((person, 1), (place, 3)))
    for piece in frame.split():
        name, label = next(kinds) if piece == "{}" else (piece, 0)
        parts = name.split()
        words += parts
        labels += [label, *[label + 1] * (len(parts) - 1)] if label else [0]
    return words, labels


def tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({word for text in (*PEOPLE, *PLACES, *FRAMES) for word in text.split()} - {"{}"})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT that has learnt from sentences which words name people and places."""
    torch.manual_seed(1)
    draw = random.Random(1)
    encode = tokenizer()
    config = BertConfig(
        vocab_size=len(encode),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    model = BertForTokenClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        rows = [sentence(draw.choice(FRAMES), draw.choice(PEOPLE), draw.choice(PLACES)) for _ in range(32)]
        batch = encode(
            [words for words, _ in rows], is_split_into_words=True, padding=True, return_tensors="pt"
        )
        wanted = torch.full_like(batch["input_ids"], -100)
        for row, (_, labels) in enumerate(rows):
            wanted[row, 1 : len(labels) + 1] = torch.tensor(labels)
        loss = model(**batch, labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("classifier")
    model.eval().save_pretrained(folder)
    encode.save_pretrained(folder)
    return str(folder)


TEXTS = ("Portrait of Ada Lovelace, New York", "", "a dog at home", "Kurt visits The Hague")


def test_the_entities_of_a_trained_classifier_are_found(
    classifier: str, knowledge_base: KnowledgeBase
) -> None:
    detector = TokenClassifierDetector(classifier)

    assert isinstance(detector, MentionDetector)
    found = [["ada lovelace", "new york"], [], [], ["kurt", "the hague"]]
    assert detector.find(TEXTS, knowledge_base) == found
    assert detector.find(TEXTS[::-1], knowledge_base) == found[::-1]
    assert find_all((detector,), TEXTS, knowledge_base) == found
    assert detector.find(("", " "), knowledge_base) == [[], []]


def test_types_and_probabilities_choose_among_them(classifier: str, knowledge_base: KnowledgeBase) -> None:
    places = TokenClassifierDetector(classifier, types=("LOC",), batch_size=1)
    certain = TokenClassifierDetector(classifier, least=1.0)

    assert places.find(TEXTS, knowledge_base) == [["new york"], [], [], ["the hague"]]
    assert certain.find(TEXTS, knowledge_base) == [[], [], [], []]
    with pytest.raises(InputError, match=r"no entity of types GPE; it has LOC, PER$"):
        TokenClassifierDetector(classifier, types=("GPE",)).find(TEXTS, knowledge_base)


def test_a_long_text_is_read_as_far_as_the_model_can(classifier: str, knowledge_base: KnowledgeBase) -> None:
    text = "kurt visits oslo " + "a dog " * 1_000_000

    assert TokenClassifierDetector(classifier).find((text,), knowledge_base) == [["kurt", "oslo"]]


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta"])
def test_positions_that_count_from_the_padding_id_are_not_exceeded(
    kind: str, knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    encode = tokenizer()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(encode),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=12,
        pad_token_id=0,
        id2label={0: "O", 1: "PER"},
        label2id={"O": 0, "PER": 1},
    )
    model = getattr(transformers, f"{kind}ForTokenClassification")(config)
    torch.nn.init.constant_(model.classifier.bias[1:], 50.0)  # all of the text is a person
    model.save_pretrained(tmp_path)
    encode.save_pretrained(tmp_path)

    found = TokenClassifierDetector(str(tmp_path)).find(("dog " * 40,), knowledge_base)

    assert found == [[" ".join(["dog"] * 9)]]  # of 12 positions, one is the padding's, two begin and end


def test_a_classifier_that_lacks_weights_is_refused(
    classifier: str, knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    folder = shutil.copytree(classifier, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InputError, match=r"lacks 1 of its weights, such as classifier\.weight"):
        TokenClassifierDetector(str(folder)).find(TEXTS, knowledge_base)


def test_faulty_settings_and_models_are_explained(
    classifier: str, knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"least of TokenClassifierDetector is 1\.5"):
        TokenClassifierDetector(classifier, least=1.5)
    with pytest.raises(InputError, match="batch_size of TokenClassifierDetector is 0"):
        TokenClassifierDetector(classifier, batch_size=0)
    with pytest.raises(InputError, match="cannot be loaded"):
        TokenClassifierDetector(str(tmp_path)).find(TEXTS, knowledge_base)
    encode = tokenizer()
    BertModel(BertConfig(vocab_size=len(encode), hidden_size=12, num_hidden_layers=1)).save_pretrained(
        tmp_path
    )
    encode.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a BertModel, no token classifier"):
        TokenClassifierDetector(str(tmp_path)).find(TEXTS, knowledge_base)
