"""Tiny tokenisers in the files of `transformers`, made without a network: word pieces as BERT has them, bytes as RoBERTa has them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PIECES = (
    *("the", "a", "cat", "sat", "dog", "dig", "##it", "##s", "##al", "harb", "##our", "mea", "##dow", "near", "high", "low", "circle", ",", ".", "#"),
    *("'", "t", "g", "o", "c", "i", "##n", "##a", "##o", "##t", "##g", "##h", "##b"),
)
TEXTS = ("the harbour near the dock shows a digit", "the dock by the digit's harbour", "low high cat dog meadow circle")


def word_pieces(folder: pathlib.Path) -> pathlib.Path:
    """BERT's: lower case, ## before what continues a word. [CLS] 1, [SEP] 2, [PAD] 3, [UNK] 5."""
    words = ["[unused]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", *PIECES]
    vocabulary = {word: number for number, word in enumerate(words)}
    whole = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    whole.normalizer = normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    whole.decoder = decoders.WordPiece()  # type: ignore[assignment]
    pair = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    whole.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pair)  # type: ignore[assignment]
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return _write(folder, whole, names, kind="bert", reader="BertTokenizer")


def bytes_of(folder: pathlib.Path, texts: Iterable[str] = TEXTS, size: int = 300) -> pathlib.Path:
    """RoBERTa's, `size` pieces that are frequent in `texts`: Ġ before what begins a word. <s> 0, <pad> 1, </s> 2, <unk> 3."""
    markers = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    whole.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=markers, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    whole.train_from_iterator([*texts] * 2, trainer)
    whole.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)  # type: ignore[assignment]
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}
    return _write(folder, whole, names, kind="roberta", reader="RobertaTokenizer")


def _write(folder: pathlib.Path, whole: Tokenizer, names: dict[str, str], *, kind: str, reader: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    whole.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": reader, "do_lower_case": True} | {f"{name}_token": word for name, word in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder
