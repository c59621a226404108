"""The tokenizer of a model as files that transformers reads, and back."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import END_OF_TEXT, BytesTokenizer, Tokenizer, tokenizer_from_bytes

SPACE = "\u2581"  # sentencepiece's sign
NOT_TEXT = -1e6  # the score of control pieces: spelling them out is always likelier
JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
    """Name and content of each file, for `AutoTokenizer`; a text has the same ids as here.

    Raises ConfigError for a sentencepiece model that has no equal there.
    """
    files: dict[str, bytes] = {}
    eot: str | None = END_OF_TEXT
    if tokenizer.file == JSON:
        files[JSON] = _text_only(tokenizer.content)
    elif tokenizer.file == SENTENCEPIECE:
        model = _unigram(tokenizer.content)
        eot = model.id_to_token(tokenizer.eot_id)
        files = {JSON: _content(model), SENTENCEPIECE: tokenizer.content}
    else:
        files[JSON] = _content(_bytes())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eot,
        "eos_token": eot,
        "pad_token": eot,
        "unk_token": eot,  # never occurs; some runtimes require one
        "padding_side": "left",  # generation continues the last token of each row
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,  # decoding gives back the exact text
    }
    files["tokenizer_config.json"] = (json.dumps(settings, indent=2) + "\n").encode()
    return files


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of transformers; ConfigError if it has none that we can read."""
    for name in (SENTENCEPIECE, JSON):  # our exports of the first contain the second too
        if (folder / name).exists():
            tokenizer = tokenizer_from_bytes(name, (folder / name).read_bytes())
            return BytesTokenizer() if _is_bytes(tokenizer) else tokenizer
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return tokenizer_from_bytes(JSON, _content(_gpt2(folder)))
    problem = f"{folder} has no tokenizer: {JSON}, {SENTENCEPIECE}, or vocab.json and merges.txt"
    raise ConfigError([problem], "import")


def _content(model: tokenizers.Tokenizer) -> bytes:
    return model.to_str(pretty=True).encode()


def _text_only(content: bytes) -> bytes:
    """A tokenizer.json without truncation, padding and post-processors that add tokens.

    A byte-level post-processor adds none, so that the files of most GPTs stay as they are.
    """
    fields = json.loads(content)
    parts = [name for name in ("truncation", "padding", "post_processor") if fields.get(name)]
    others = [name for name in parts if fields[name].get("type") != "ByteLevel"]
    return json.dumps(fields | dict.fromkeys(others)).encode() if others else content


def _bytes() -> tokenizers.Tokenizer:
    """Ids 0 to 255 for the bytes, 256 for end-of-text: byte-level BPE without merges."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    model = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([END_OF_TEXT])
    return model


def _byte_characters() -> list[str]:
    """GPT-2's character for each byte: itself if visible, otherwise the next one from 256."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(b) if b in visible else chr(256 + hidden.index(b)) for b in range(256)]


def _is_bytes(tokenizer: Tokenizer) -> bool:
    if tokenizer.file != JSON:
        return False
    fields, ours = json.loads(tokenizer.content), json.loads(_content(_bytes()))
    return all(fields.get(part) == ours[part] for part in ("model", "pre_tokenizer", "normalizer"))


def _gpt2(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's older pair of files."""
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library has no class of its own
        problem = f"vocab.json and merges.txt in {folder} are damaged: {error}; fetch them again"
        raise ConfigError([problem], "import") from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _unigram(content: bytes) -> tokenizers.Tokenizer:
    """From a sentencepiece unigram model that normalises nothing, as `train_tokenizer` makes."""
    spec = proto.ModelProto.FromString(content)  # type: ignore[attr-defined]
    plain = spec.normalizer_spec
    if (
        spec.trainer_spec.model_type != spec.trainer_spec.UNIGRAM
        or plain.precompiled_charsmap
        or plain.add_dummy_prefix
        or plain.remove_extra_whitespaces
    ):
        problem = (
            "only a sentencepiece unigram without normalisation, dummy prefix and removal of "
            "spaces has an equal tokenizer.json, and this model is not one"
        )
        raise ConfigError([problem], "export")
    kinds = proto.ModelProto.SentencePiece  # type: ignore[attr-defined]
    text = (kinds.NORMAL, kinds.USER_DEFINED)
    model = tokenizers.Tokenizer(
        models.Unigram(
            [(p.piece, p.score if p.type in text else NOT_TEXT) for p in spec.pieces],
            spec.trainer_spec.unk_id,
            spec.trainer_spec.byte_fallback,
        )
    )
    model.normalizer = normalizers.Replace(" ", SPACE)
    model.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    model.add_special_tokens([processor.id_to_piece(processor.eos_id())])
    return model
