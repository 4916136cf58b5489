import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from mofi_lightning.evaluation.templates import fill, read_templates, template_list, template_names
from mofi_lightning.types import InputError


def test_clips_templates_are_those_of_open_clip():
    for name, peers in (
        ("openai_imagenet_80", OPENAI_IMAGENET_TEMPLATES),
        ("openai_simple_7", SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert [fill(template, "ice {0} bear") for template in read_templates(name)] == [
            peer("ice {0} bear") for peer in peers
        ]
    assert (len(OPENAI_IMAGENET_TEMPLATES), len(SIMPLE_IMAGENET_TEMPLATES)) == (80, 7)


def test_every_shipped_list_can_be_read_and_says_where_it_is_from():
    for name in template_names():
        templates = read_templates(name)
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 for template in templates)


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "pets.txt"
    file.write_bytes("\ufeff# of mine\r\n\r\na {}, a kind of {}\r\n  ein schönes {}  \r\n".encode())
    assert template_list(str(file)) == ("a {}, a kind of {}", "ein schönes {}")
    assert fill("a {}, a kind of {}", "dog") == "a dog, a kind of dog"


def test_prompts_themselves_are_taken_as_they_are():
    assert template_list(["{}", "a {}"]) == ("{}", "a {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# only this\n", "needs a template"),
        (b"a {}\na photo of {c}\n", r"'a photo of \{c\}' has no '\{\}'.*mine\.txt"),
        (b"\xff\xfe{}", "UnicodeDecodeError.*entity_5"),
    ],
)
def test_files_that_are_no_list_are_named(content, message, tmp_path):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        template_list(str(tmp_path / "mine.txt"))


@pytest.mark.parametrize("name", ["openai_imagenet", "../templates/entity_5", ""])
def test_an_unknown_list_names_those_there_are(name):
    with pytest.raises(InputError, match="give one of entity_5, openai_imagenet_80, openai_simple_7"):
        template_list(name)
