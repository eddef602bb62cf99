"""How a tokenizer writes text into its pieces, and the bytes that a piece stands for.

The conventions are read from the tokenizer's own JSON (model, normaliser, pre-tokeniser, decoder),
never from class names: byte-level BPE (``Ġdog``), SentencePiece (``▁dog``, ``<0x0A>``), WordPiece
(``dog``, ``##gy``), end-of-word BPE (``dog</w>``). Tokenizers without a JSON backend are judged by the
marker that most of their pieces carry.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
_SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character for each byte: printable bytes are themselves."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


@dataclass(frozen=True)
class PieceStyle:
    """How pieces are written.

    Attributes:
        byte_level: each character of a piece stands for a byte.
        space: the marker that stands for a space inside pieces, such as ``▁``.
        byte_fallback: ``<0x0A>`` stands for a byte.
        continuing: prefix of pieces inside a word (``##``); words then carry no marker of their own.
        word_end: suffix of the last piece of a word (``</w>``).
        bare_words: text is split at spaces, which no piece shows.
        lowercase: the normaliser lower-cases.
    """

    byte_level: bool = False
    space: str | None = None
    byte_fallback: bool = False
    continuing: str | None = None
    word_end: str | None = None
    bare_words: bool = False
    lowercase: bool = False

    def piece_bytes(self, piece: str) -> bytes:
        """Return the bytes a vocabulary piece stands for, a space in front included."""
        if self.byte_fallback and (match := _BYTE_PIECE.match(piece)):
            return bytes([int(match[1], 16)])
        text, inside, ends_word = self._strip_affixes(piece)
        if self.byte_level and all(character in BYTE_ALPHABET for character in text):
            raw = bytes(BYTE_ALPHABET[character] for character in text)
        else:
            raw = (text.replace(self.space, " ") if self.space else text).encode("utf-8", "surrogatepass")
        starts_word = (self.bare_words and not inside) or ends_word
        return b" " + raw if starts_word and text[:1].isalnum() else raw

    def is_byte_piece(self, piece: str) -> bool:
        """Whether a piece is a byte-fallback token, used only where no other piece fits."""
        return self.byte_fallback and _BYTE_PIECE.match(piece) is not None

    def literal_bytes(self, content: str) -> bytes:
        """Return the bytes of an added token, which is matched in the text as it stands."""
        return (content.replace(self.space, " ") if self.space else content).encode("utf-8", "surrogatepass")

    def _strip_affixes(self, piece: str) -> tuple[str, bool, bool]:
        """Return the bare piece, whether it continues a word, whether it ends one."""
        if self.continuing and piece.startswith(self.continuing) and len(piece) > len(self.continuing):
            return piece.removeprefix(self.continuing), True, False
        if self.word_end and piece.endswith(self.word_end) and len(piece) > len(self.word_end):
            return piece.removesuffix(self.word_end), False, True
        return piece, False, False


def style_of(tokenizer: Any) -> PieceStyle:
    """Return how a tokenizer writes its pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return style_from_pieces(tokenizer.get_vocab())
    return style_from_json(json.loads(backend.to_str()))


def style_from_json(content: Mapping[str, Any]) -> PieceStyle:
    """Read the style from the parts of a ``tokenizer.json``."""
    model = content["model"]
    normalizers = list(_flatten(content.get("normalizer"), "normalizers"))
    splitters = list(_flatten(content.get("pre_tokenizer"), "pretokenizers"))
    decoders = list(_flatten(content.get("decoder"), "decoders"))
    types = {part["type"] for part in (*normalizers, *splitters, *decoders)}
    space = _space_marker([*decoders, *normalizers, *splitters])
    byte_level = "ByteLevel" in types
    has_words = model["type"] in ("WordPiece", "WordLevel") or any(
        part["type"] in _SPLITTERS for part in splitters
    )
    word_end = model.get("end_of_word_suffix") or None
    return PieceStyle(
        byte_level=byte_level,
        space=space,
        byte_fallback=bool(model.get("byte_fallback")) or "ByteFallback" in types,
        continuing=(model.get("continuing_subword_prefix") or None),
        word_end=word_end,
        bare_words=has_words and not byte_level and space is None and word_end is None,
        lowercase=any(_lowercases(part) for part in normalizers),
    )


def style_from_pieces(pieces: Iterable[str]) -> PieceStyle:
    """Guess the style of a tokenizer without JSON by counting which marker its pieces carry."""
    counts = {"Ġ": 0, "▁": 0, "##": 0, "</w>": 0, "<0x": 0}
    for piece in pieces:
        for marker in ("Ġ", "▁", "##", "<0x"):
            counts[marker] += piece.startswith(marker)
        counts["</w>"] += piece.endswith("</w>")
    byte_fallback = counts.pop("<0x") >= 256
    marker = max(counts, key=lambda name: counts[name])
    if not counts[marker]:
        return PieceStyle(byte_fallback=byte_fallback)
    return PieceStyle(
        byte_level=marker == "Ġ",
        space="▁" if marker == "▁" else None,
        byte_fallback=byte_fallback,
        continuing="##" if marker == "##" else None,
        word_end="</w>" if marker == "</w>" else None,
        bare_words=marker == "##",
    )


def _flatten(part: Mapping[str, Any] | None, children: str) -> Iterator[Mapping[str, Any]]:
    """Walk a normaliser, pre-tokeniser or decoder, sequences opened."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for child in part[children]:
            yield from _flatten(child, children)
    else:
        yield part


def _space_marker(parts: Iterable[Mapping[str, Any]]) -> str | None:
    for part in parts:
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "Replace":
            pattern, content = part["pattern"].get("String"), part["content"]
            if content == " " and pattern:
                return str(pattern)
            if pattern == " " and content:
                return str(content)
    return None


def _lowercases(normalizer: Mapping[str, Any]) -> bool:
    return normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))
