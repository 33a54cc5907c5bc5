"""The tokenizer that runs is the one of the checkpoint's own files, and no code of theirs runs."""

import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.data.tokens import tokenize
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.models.tokenizer_checks import check_ids, tokenizer_notes
from mtl_jax.training.text_reader import TextReader
from tests.conftest import WORDS

# All that the changes below can change is in one of these.
TEXTS = [
    "The film was GOOD, tweet!",
    "caf\u00e9 CAF\u00c9 caf e\u0301 \u4e2d\u6587 a\u0000b",
    "liked reads good@bad a_the unknownword abcdefghijklmnop",
    "a <new> b<new>c [MASK]the [CLS]",
]
VOCABULARY = [
    *WORDS,
    *[
        "Film",
        "The",
        "GOOD",
        "caf",
        "##\u00e9",
        "##e",
        "caf\u00e9",
        "CAF",
        "CAF\u00c9",
        "CAFE",
        "e\u0301",
    ],
    *[
        "\u4e2d\u6587",
        "\u4e2d",
        "\u6587",
        "ab",
        "good@bad",
        "_",
        "@",
        "a_the",
        "<new>",
        "<",
        "new",
        ">",
    ],
    *["abc", "##def", "##ghi", "##jkl", "##mnop", "@@s", "film,"],
]
SIZE, NEW = len(VOCABULARY), VOCABULARY.index("<new>")
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
        "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
    },
}


UNNAMED = json.loads(
    json.dumps(TEMPLATE).replace('{"id": "[CLS]", "type_id": 0}', '{"id": "x", "type_id": 0}')
)


def added(index, content, **flags):
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": index, "content": content} | dict.fromkeys(names, False) | flags


NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
MODEL = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": {token: i for i, token in enumerate(VOCABULARY)},
}
WHOLE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [added(i, VOCABULARY[i], special=True) for i in range(5)],
    "normalizer": NORMALIZER,
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": TEMPLATE,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": MODEL,
}


def write(folder, whole=None, vocabulary=None, **files):
    """A folder of a tokenizer; ``files`` are JSON by the stem of their names."""
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if whole is not None:
        (folder / "tokenizer.json").write_text(json.dumps(whole))
    if vocabulary is not None:
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def ids(tokenizer, texts=TEXTS):
    return [tokenize(tokenizer, [text], 512).ids.tolist() for text in texts]


def own_ids(folder, texts=TEXTS):
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_truncation()
    own.no_padding()
    return [own.encode(text).ids for text in texts]


def changed(**changes):
    whole = copy.deepcopy(WHOLE)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(whole[name], dict) and "type" not in value
        whole[name] = whole[name] | value if both else value
    return whole


UNIGRAM = [[token, -float(i)] for i, token in enumerate(VOCABULARY)]
CHANGES = {
    "case": {"normalizer": {"lowercase": False}},
    "accents": {"normalizer": {"strip_accents": False}},
    "accents of cased texts": {"normalizer": {"lowercase": False, "strip_accents": True}},
    "Chinese characters": {"normalizer": {"handle_chinese_chars": False}},
    "control characters": {"normalizer": {"clean_text": False}},
    "no normalizer": {"normalizer": None},
    "another normalizer": {"normalizer": {"type": "NFD"}},
    "words by space": {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    "words by letter": {"pre_tokenizer": {"type": "Whitespace"}},
    "no words": {"pre_tokenizer": None},
    "no special tokens": {"post_processor": None},
    "other special tokens": {
        "post_processor": {"type": "BertProcessing", "sep": ["[MASK]", 4], "cls": ["[CLS]", 2]}
    },
    "an added token": {"added_tokens": [*WHOLE["added_tokens"], added(NEW, "<new>")]},
    "how one is found": {
        "added_tokens": [*WHOLE["added_tokens"], added(NEW, "<new>", single_word=True)]
    },
    "one less": {"added_tokens": WHOLE["added_tokens"][:4]},
    "prefix": {"model": {"continuing_subword_prefix": "@@"}},
    "long words": {"model": {"max_input_chars_per_word": 4}},
    "unknown words": {"model": {"unk_token": "[MASK]"}},
    "WordLevel": {"model": {"type": "WordLevel", "vocab": MODEL["vocab"], "unk_token": "[UNK]"}},
    "BPE": {"model": {"type": "BPE", "vocab": MODEL["vocab"], "unk_token": "[UNK]", "merges": []}},
    "Unigram": {"model": {"type": "Unigram", "vocab": UNIGRAM, "unk_id": 1}},
}


@pytest.mark.parametrize("fast", ["BertTokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("change", CHANGES)
def test_the_ids_are_those_of_tokenizer_json(change, fast, tmp_path):
    write(tmp_path, changed(**CHANGES[change]), tokenizer_config={"tokenizer_class": fast})
    expected = own_ids(tmp_path)
    assert expected != own_ids(write(tmp_path / "..", WHOLE))  # the change is seen in the texts
    loaded = load_tokenizer(tmp_path)
    assert ids(loaded) == expected
    # A run's folder has a copy.
    loaded.save_pretrained(tmp_path / "saved")
    assert ids(load_tokenizer(tmp_path / "saved")) == expected


def test_how_texts_were_cut_and_filled_up_elsewhere_is_not_how_they_are_here(tmp_path):
    truncation = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    loaded = load_tokenizer(write(tmp_path, WHOLE | {"truncation": truncation, "padding": padding}))
    expected = own_ids(tmp_path)
    assert ids(loaded) == expected
    # But for the side, which is a trait of the checkpoint.
    assert tokenize(loaded, TEXTS[:1], 4).ids.tolist() == [2, *expected[0][-3:]]


VOCABULARY_ALONE = {
    "case": ({"do_lower_case": False}, {"lowercase": False}),
    "accents": ({"strip_accents": False}, {"strip_accents": False}),
    "Chinese": ({"tokenize_chinese_chars": False}, {"handle_chinese_chars": False}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("change", VOCABULARY_ALONE)
def test_a_vocabulary_gives_the_ids_of_the_same_tokenizer_json(change, tmp_path):
    fields, normalizer = VOCABULARY_ALONE[change]
    write(tmp_path, vocabulary=VOCABULARY, tokenizer_config=fields)
    found = ids(load_tokenizer(tmp_path))
    assert found == own_ids(write(tmp_path, changed(normalizer=normalizer)))


def test_a_vocabulary_is_told_of_tokens_that_were_added(tmp_path):
    write(
        tmp_path,
        vocabulary=VOCABULARY,
        added_tokens={"[ENT]": SIZE},
        special_tokens_map={"additional_special_tokens": ["<new>"]},
        tokenizer_config={
            "added_tokens_decoder": {str(SIZE + 1): added(SIZE + 1, "w\u00f6", normalized=False)}
        },
    )
    assert ids(load_tokenizer(tmp_path), ["a[ENT]b w\u00f6 <new>"]) == [
        [2, 5, SIZE, 1, SIZE + 1, NEW, 3]
    ]


def test_a_vocabulary_is_enough(tmp_path):
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(downloads.minilm() / name, tmp_path)
    tokens = tokenize(load_tokenizer(tmp_path), ["Hello world"], 8)
    assert tokens.ids.tolist() == [101, 7592, 2088, 102]


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def roberta_files(folder):
    """``vocab.json`` and ``merges.txt`` of a few merges over all bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "th e", "\u0120 the", "f i", "l m", "fi lm", "\u0120 film"]
    tokens = [*ROBERTA, *sorted(ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    pairs: Any = [tuple(pair.split(" ")) for pair in merges]
    return vocabulary, pairs


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_pairs_give_the_ids_of_transformers_roberta(prefix, tmp_path):
    from transformers import RobertaTokenizer

    vocabulary, merges = roberta_files(tmp_path)
    told = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": prefix}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    loaded = load_tokenizer(tmp_path)
    # As roberta-base declares it.
    mask: Any = AddedToken("<mask>", lstrip=True)
    theirs = RobertaTokenizer(vocabulary, merges, add_prefix_space=prefix, mask_token=mask)
    texts = [*TEXTS, "the film <mask>, the</s> film", "", " the"]
    assert ids(loaded, texts) == theirs(texts)["input_ids"]
    assert loaded.pad_token_id == 1
    assert ids(loaded, ["the film"])[0][-1] == 2
    assert not notes(tmp_path, len(vocabulary))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("merges.txt", "t h e\n", "merges.txt, line 1, is not a pair"),
        ("merges.txt", "t zz\n", "merges.txt does not fit vocab.json"),
        ("vocab.json", '{"<s>": 0, "<pad>": 1, "</s>": 2}', "has no unk_token '<unk>'"),
        ("vocab.json", '{"<s>": 0, "<pad>": 0, "</s>": 2, "<unk>": 3}', "several tokens one id"),
        ("merges.txt", None, "merges.txt is missing"),
        ("config.json", '{"model_type": "gpt2"}', "none that transformers makes of vocab.json"),
    ],
)
def test_byte_pairs_that_are_damaged_are_one_line(name, content, words, tmp_path):
    roberta_files(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        load_tokenizer(tmp_path)


def test_byte_pairs_beside_a_tokenizer_json_are_held_against_it(tmp_path):
    vocabulary, merges = roberta_files(tmp_path)
    config, pairs = tmp_path / "tokenizer_config.json", tmp_path / "merges.txt"
    config.write_text('{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": false}')
    alone = load_tokenizer(tmp_path)
    whole: Any = alone.backend_tokenizer
    whole.save(str(tmp_path / "tokenizer.json"))
    assert ids(load_tokenizer(tmp_path)) == ids(alone)
    config.write_text('{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": true}')
    with pytest.raises(UserError, match=r"add_prefix_space true, and the pre_tokenizer of .* not:"):
        load_tokenizer(tmp_path)
    config.write_text('{"tokenizer_class": "RobertaTokenizer"}')
    pairs.write_text("\n".join(" ".join(pair) for pair in reversed(merges)))
    with pytest.raises(UserError, match=r"merges\.txt and .*/tokenizer\.json differ in what they"):
        load_tokenizer(tmp_path)
    pairs.unlink()
    size = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"film": size, "new": size + 1}))
    words = (
        rf"vocab\.json and .* differ in 2 of {size + 1} tokens \('film' is {size} and {size - 2}\)"
    )
    with pytest.raises(UserError, match=words):
        load_tokenizer(tmp_path)


def test_mpnet_s_vocabulary_alone_has_its_own_special_tokens(tmp_path):
    from transformers import MPNetTokenizer

    special = {"[PAD]": "<pad>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}
    words = [special.get(word, word) for word in WORDS]
    write(tmp_path, vocabulary=words, config={"model_type": "mpnet"})
    loaded = load_tokenizer(tmp_path)
    theirs = MPNetTokenizer(vocab={word: i for i, word in enumerate(words)})
    texts = ["The film was GOOD, tweets!", "a <mask> book </s>", ""]
    assert ids(loaded, texts) == theirs(texts)["input_ids"]
    # Two of the first's end stand between the texts of a pair, as in RoBERTa.
    pair = (["the film"], ["a book"])
    assert loaded(*pair)["input_ids"] == theirs(*pair)["input_ids"]
    assert loaded(*pair)["input_ids"][0].count(3) == 3
    assert loaded.pad_token_id == 0


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer: name a checkpoint"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot load .*tokenizer\.json \(.*\): name a checkpoint"):
        load_tokenizer(tmp_path)


def test_says_nothing_when_there_is_no_pytorch():
    program = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        "from mtl_jax.core import downloads\n"
        "from mtl_jax.models.tokenizer import load_tokenizer\n"
        "load_tokenizer(downloads.minilm())\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


@pytest.mark.parametrize(("role", "token"), SPECIAL.items())
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_missing_special_token_is_named(name, role, token, tmp_path):
    # Its place stays, so that no other token gets another id.
    vocabulary = ["[unused0]" if word == token else word for word in VOCABULARY]
    if name == "vocab.txt":
        write(tmp_path, vocabulary=vocabulary)
    else:
        vocab = {word: i for i, word in enumerate(vocabulary)}
        kept = [one for one in WHOLE["added_tokens"] if one["content"] != token]
        write(tmp_path, changed(model={"vocab": vocab}, added_tokens=kept))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name} has no {role} '{token}': name the one")


def test_special_tokens_of_other_names(tmp_path):
    names = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[UNK]": "<unk>"}
    vocabulary = [names.get(word, word) for word in VOCABULARY]
    special = {role: names[token] for role, token in SPECIAL.items()}
    special["unk_token"] = added(1, "<unk>")
    write(tmp_path, vocabulary=vocabulary, tokenizer_config=special)
    assert ids(load_tokenizer(tmp_path), ["a zzz"]) == [[2, 5, 1, 3]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config": {"do_lower_case": False}}, "says do_lower_case false, and the norm"),
        ({"tokenizer_config": {"strip_accents": False}}, "says strip_accents false"),
        ({"tokenizer_config": {"tokenize_chinese_chars": False}}, "tokenize_chinese_chars false"),
        (
            {"tokenizer_config": {"do_lower_case": True}, "whole": CHANGES["no normalizer"]},
            r"says do_lower_case true, and the normalizer of tokenizer\.json does not: let both",
        ),
        ({"added_tokens": {"<other>": 99}}, "'<other>' is declared as id 99, and is not there"),
        ({"added_tokens": {"good": 3}}, "'good' is declared as id 3, and is 19"),
        ({"tokenizer_config": {"extra_special_tokens": ["<x>"]}}, "'<x>' is declared, and is not"),
        (
            {"vocabulary": [*VOCABULARY, "one", "more"]},
            rf"in 2 of {SIZE + 2} tokens \('one' is {SIZE} and not there\)",
        ),
        ({"vocabulary": ["[PAD]", "good"]}, r"in 1 of 2 tokens \('good' is 1 and 19\): remove the"),
        (
            {
                "whole": {
                    "post_processor": {
                        "type": "BertProcessing",
                        "sep": ["[SEP]", 9],
                        "cls": ["[CLS]", 2],
                    }
                }
            },
            r"puts '\[SEP\]' around a text as id 9",
        ),
        ({"whole": {"model": {"vocab": {"[PAD]": 0}}}}, "Missing \\[UNK\\] token"),
    ],
    ids=str,
)
def test_files_that_contradict_each_other_are_refused(files, words, tmp_path):
    write(tmp_path, **{**files, "whole": changed(**files.get("whole", {}))})
    with pytest.raises(UserError, match=words) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_agree_are_none(tmp_path):
    config = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    load_tokenizer(write(tmp_path, WHOLE, [*VOCABULARY, ""], tokenizer_config=config))


@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "added_tokens", "config"]
)
@pytest.mark.parametrize("content", [[], "x", 1, None])
def test_json_of_another_kind_is_one_line(content, name, tmp_path):
    write(tmp_path, WHOLE, **{name: content})
    with pytest.raises(UserError, match=rf"/{name}\.json: .* is not of type 'object'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", {"do_lower_case": "yes"}),
        ("tokenizer_config", {"tokenizer_class": 3}),
        ("tokenizer_config", {"cls_token": ["[CLS]"]}),
        ("tokenizer_config", {"cls_token": {"contents": "[CLS]"}}),
        ("tokenizer_config", {"added_tokens_decoder": {"x": added(1, "x")}}),
        ("tokenizer_config", {"added_tokens_decoder": {"1": "x"}}),
        ("special_tokens_map", {"unk_token": 3}),
        ("added_tokens", {"x": "1"}),
        ("tokenizer", []),
        ("tokenizer", {"model": WHOLE["model"], "added_tokens": 3}),
        ("tokenizer", changed(model={"vocab": ["a", "b"]})),
        ("tokenizer", changed(post_processor=TEMPLATE | {"special_tokens": {}})),
        ("tokenizer", changed(post_processor=UNNAMED)),
    ],
    ids=str,
)
def test_fields_of_another_kind_are_one_line(name, content, tmp_path):
    write(tmp_path, WHOLE, VOCABULARY, **{name: content})
    with pytest.raises(UserError, match=rf"/{name}\.json.*: fetch it again$") as caught:
        load_tokenizer(tmp_path, "fetch it again")
    assert len(str(caught.value)) < 800


def test_a_vocabulary_that_is_no_text(tmp_path):
    write(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe[PAD]")
    with pytest.raises(UserError, match=r"vocab\.txt is not UTF-8 text \(.*\): name a checkpoint"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_neither_waited_for_nor_passed_over(name, kind, tmp_path):
    write(tmp_path)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(name)}[
        kind
    ]()
    with pytest.raises(UserError, match=rf"/{re.escape(name)} can't be read \("):
        load_tokenizer(tmp_path)


def test_a_token_that_is_in_a_vocabulary_twice(tmp_path):
    write(tmp_path, None, [*VOCABULARY, VOCABULARY[7]])
    token, line = re.escape(repr(VOCABULARY[7])), len(VOCABULARY) + 1
    words = rf"vocab\.txt has {token} on lines 8 and {line}, and a token has one id"
    with pytest.raises(UserError, match=words):
        load_tokenizer(tmp_path)


def test_an_unknown_word_that_has_no_id_is_told_at_load(tmp_path):
    model = {"type": "Unigram", "vocab": [["[CLS]", -1.0], ["[SEP]", -1.0]], "unk_id": None}
    whole = changed(model=model, added_tokens=[], post_processor=None)
    with pytest.raises(UserError, match=r"can't make ids of every text \(.*\): give it an unknown"):
        load_tokenizer(write(tmp_path, whole))


def test_other_ids_than_those_of_the_file_are_refused(tmp_path):
    loaded = load_tokenizer(write(tmp_path, WHOLE))
    cased = Tokenizer.from_str(json.dumps(changed(normalizer={"lowercase": False})))
    check_ids(loaded.backend_tokenizer, loaded, tmp_path)
    with pytest.raises(UserError, match=r"makes of .* gives 'The quick .* other ids than its own"):
        check_ids(cased, loaded, tmp_path)


# No code.


class Terminal(io.StringIO):
    """A standard input that would consent."""

    def isatty(self):
        return True


OWN_CODE = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
CODE += "from transformers import BertTokenizer\nclass OwnTokenizer(BertTokenizer): pass\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config": {"auto_map": OWN_CODE}}, r"tokenizer_config\.json: auto_map names"),
        ({"tokenizer_config": {"auto_map": ["own.OwnTokenizer", None]}}, "auto_map names code"),
        (
            {"tokenizer_config": {"auto_map": {"AutoTokenizer": "a/b--own.OwnTokenizer"}}},
            "auto_map",
        ),
        (
            {"config": {"model_type": "bert", "auto_map": OWN_CODE}},
            r"/config\.json: auto_map names",
        ),
        (
            {"config": {"auto_map": OWN_CODE}, "tokenizer_config": {"auto_map": OWN_CODE}},
            "auto_map names code",
        ),
        ({"tokenizer_config": {"tokenizer_class": "OwnTokenizer"}}, "'OwnTokenizer' is none that"),
        ({"config": {"tokenizer_class": "own.OwnTokenizer"}}, "'own.OwnTokenizer' is none that"),
        ({"tokenizer_config": {"tokenizer_class": "pipeline"}}, "'pipeline' is none that"),
        ({"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizer"}}, "is none that"),
        ({"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "is none that"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["whole", "vocabulary"])
def test_code_of_a_checkpoint_is_refused_and_nobody_is_asked(
    kind, files, words, tmp_path, monkeypatch, capsys
):
    answers = Terminal("y\n" * 9)
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    write(tmp_path, **{kind: WHOLE if kind == "whole" else VOCABULARY}, **files)
    with pytest.raises(UserError, match=words):
        load_tokenizer(tmp_path)
    assert answers.tell() == 0
    assert not (tmp_path / "ran").exists()
    assert capsys.readouterr() == ("", "")


def test_classes_of_transformers_are_known(tmp_path):
    for name in ("BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizerFast"):
        load_tokenizer(
            write(tmp_path, vocabulary=VOCABULARY, tokenizer_config={"tokenizer_class": name})
        )
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path, vocabulary=VOCABULARY, tokenizer_config=config)
    with pytest.raises(
        UserError, match=r"none that transformers makes of vocab\.txt, and no other"
    ):
        load_tokenizer(tmp_path)
    load_tokenizer(write(tmp_path, WHOLE, tokenizer_config=config))
    config = {"tokenizer_class": "XLMRobertaTokenizer", "do_lower_case": True}
    load_tokenizer(write(tmp_path, changed(**CHANGES["Unigram"]), tokenizer_config=config))


def test_a_tokenizer_that_is_not_bert_s_own_is_refused(tmp_path):
    write(tmp_path, vocabulary=VOCABULARY, tokenizer_config={"do_basic_tokenize": False})
    with pytest.raises(
        UserError, match=r"do_basic_tokenize false and never_split are not supported"
    ):
        load_tokenizer(tmp_path)


# What is told.


def notes(folder, rows):
    return list(tokenizer_notes(folder, load_tokenizer(folder), rows))


def words(capitals=0, accents=0, chinese=0, rest=60):
    return [
        *WORDS[:5],
        *(f"W{i}" for i in range(capitals)),
        *(f"\u00e9{i}" for i in range(accents)),
        *("\u4e2d" * (i + 2) for i in range(chinese)),
        *(f"w{i}" for i in range(rest)),
    ]


@pytest.mark.parametrize(
    ("vocabulary", "config", "expected"),
    [
        (words(capitals=9), None, ["9 of 74 tokens of the vocabulary have capitals"]),
        (words(capitals=9), {"do_lower_case": None}, ["9 of 74"]),
        (words(capitals=9), {"do_lower_case": True}, []),
        (words(capitals=9), {"do_lower_case": False}, []),
        (words(capitals=9, accents=4), None, ["9 of 78"]),
        (words(accents=4), None, ["4 of 69 tokens of the vocabulary have accents"]),
        (words(accents=4), {"strip_accents": None}, ["4 of 69"]),
        (words(accents=4), {"strip_accents": False}, []),
        (words(accents=4), {"strip_accents": True}, []),
        (words(chinese=4), None, ["4 of 69 tokens of the vocabulary are of several Chinese"]),
        (words(chinese=4), {"tokenize_chinese_chars": False}, []),
        # By chance.
        (words(capitals=1, rest=300), None, []),
        (words(), None, []),
        ([*words(), "a"], {"do_lower_case": False}, ["has no capitals and the tokenizer keeps th"]),
        ([*words(), "a", "A"], {"do_lower_case": False}, []),
    ],
)
def test_tokens_that_no_text_reaches_are_told(vocabulary, config, expected, tmp_path):
    files = {} if config is None else {"tokenizer_config": config}
    found = notes(write(tmp_path, vocabulary=vocabulary, **files), len(vocabulary))
    assert len(found) == len(expected)
    for note, start in zip(found, expected, strict=True):
        assert start in note
        assert str(tmp_path / "tokenizer_config.json") in note


def test_the_default_checkpoint_is_told_nothing_of():
    assert notes(downloads.minilm(), 30522) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("no special tokens", "puts nothing around a text, and not [CLS] and [SEP]"),
        ("other special tokens", "puts ['[CLS]', '[MASK]'] around a text, and not [CLS] and [SEP]"),
    ],
)
def test_unusual_special_tokens_are_told(change, told, tmp_path):
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    write(tmp_path, changed(**CHANGES[change]), tokenizer_config={"do_lower_case": True} | special)
    assert told in "; ".join(notes(tmp_path, SIZE))


@pytest.mark.parametrize(
    ("size", "rows", "told"),
    [
        (30522, 30522, False),
        (30522, 30528, False),  # to a multiple of 8, 64, 128
        (30522, 30592, False),
        (12000, 12100, False),  # a few to spare, as of the multilingual MiniLM
        (36, 41, True),
        (36, 40, False),
        (28996, 30522, True),
        (30521, 50000, True),
    ],
)
def test_an_embedding_of_more_rows_than_padding_explains_is_told(size, rows, told, tmp_path):
    vocabulary = [*WORDS[:5], *(f"w{i}" for i in range(size - 5))]
    found = notes(write(tmp_path, vocabulary=vocabulary), rows)
    assert [f"has {size:,} tokens, the embedding {rows:,} rows" in note for note in found] == (
        [True] * told
    )


def test_ids_that_the_embedding_has_no_row_for_are_refused(tmp_path):
    loaded = load_tokenizer(write(tmp_path, vocabulary=VOCABULARY))
    TextReader(loaded, EncoderConfig(vocab_size=SIZE), 128, "cut")
    with pytest.raises(
        UserError, match=rf"ids up to {SIZE - 1}, the backbone a vocabulary of {SIZE - 1}: use"
    ):
        TextReader(loaded, EncoderConfig(vocab_size=SIZE - 1), 128, "cut")
