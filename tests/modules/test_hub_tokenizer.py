"""Tokenizers that come with other backbones, against open_clip's from the same files; where their files are found."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modules.backbones import ARCHITECTURES, OWN_FILES, Backbone, TextParts, Tokens
from modules.caption_lengths import count_cut
from modules.clip import CLIP
from modules.hub_tokenizer import HubTokenizer, files_sha256
from modules.text_features import text_sha256
from modules.tokenizer import Tokenizer, clean, find_tokenizer, tokenizer_of
from tests.captions import CAPTIONS
from tests.tiny import TINY, tiny_clip

pytest.importorskip("transformers", reason="reads the files of tokenizers")
open_clip = pytest.importorskip("open_clip")

from tests.modules.small_tokenizers import write_siglip_tokenizer, write_xlm_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    folder = tmp_path_factory.mktemp("siglip")
    size = write_siglip_tokenizer(folder)
    text = TextParts(causal=False, end="last", projection_bias=True)
    architecture = replace(TINY, context_length=64, vocab_size=size, text=text)
    return folder, Backbone(architecture, tokens=Tokens(OWN_FILES, "canonicalize", "last", places=(str(folder),)))


@pytest.fixture(scope="module")
def xlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    folder = tmp_path_factory.mktemp("xlm")
    size = write_xlm_tokenizer(folder)
    architecture = replace(TINY, context_length=77, vocab_size=size, text=TextParts(end="id 2"))
    return folder, Backbone(architecture, tokens=Tokens(OWN_FILES, "whitespace", "id 2", places=(str(folder),)))


def test_two_hundred_captions() -> None:
    assert len(set(CAPTIONS)) == 200


def test_ids_of_siglip_are_open_clips(siglip: tuple[Path, Backbone]) -> None:
    folder, backbone = siglip
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=64, clean="canonicalize")
    ours = tokenizer_of(backbone, 64)
    assert torch.equal(ours(CAPTIONS), theirs(CAPTIONS))
    assert (ours(CAPTIONS) == 2).any()  # some words are unknown, and count
    assert ours("").tolist() == [[1] + [0] * 63]


def test_rows_of_siglip_are_as_long_as_in_its_training(siglip: tuple[Path, Backbone]) -> None:
    """Fewer words are kept at a lower --max_words, and padding follows: the last place stands for the text."""
    folder, backbone = siglip
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=20, clean="canonicalize")
    rows = tokenizer_of(backbone, 20)(CAPTIONS)
    assert rows.shape == (200, 64)
    assert torch.equal(rows[:, :20], theirs(CAPTIONS))
    assert not rows[:, 20:].any()
    clip = tiny_clip(architecture=backbone.architecture)
    assert clip.text.end_positions(rows).tolist() == [63] * 200


@pytest.mark.parametrize("max_words", [12, 77])
def test_ids_of_metaclip_2_are_open_clips(xlm: tuple[Path, Backbone], max_words: int) -> None:
    folder, backbone = xlm
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=max_words)
    ours = tokenizer_of(backbone, max_words)(CAPTIONS)
    assert torch.equal(ours, theirs(CAPTIONS))
    ends = tiny_clip(architecture=backbone.architecture).text.end_positions(ours)
    assert (ours.gather(1, ends[:, None]) == 2).all()
    assert (ours == 2).sum(dim=1).tolist() == [1] * 200


def test_the_first_end_stands_for_a_text() -> None:
    text = CLIP(replace(TINY, text=TextParts(end="id 2"))).text
    assert text.end_positions(torch.tensor([[0, 9, 2, 1, 2], [0, 7, 8, 9, 2]])).tolist() == [2, 4]
    with pytest.raises(ValueError, match="END, id 50, is not in a vocabulary of 50 tokens"):
        replace(TINY, vocab_size=50, text=TextParts(end="id 50"))
    with pytest.raises(ValueError, match=r"a tower reads one of .*, not 'id x'"):
        replace(TINY, text=TextParts(end="id x"))


def test_clips_own_tokens_on_a_tower_that_reads_the_last() -> None:
    """A SigLIP may be trained with CLIP's tokenizer; open_clip pads its rows with zeros as well."""
    backbone = Backbone(replace(TINY, text=TextParts(causal=False, end="last")), tokens=Tokens(cleaning="canonicalize"))
    theirs = open_clip.tokenizer.SimpleTokenizer(context_length=16, clean="canonicalize")
    assert torch.equal(tokenizer_of(backbone, 16)(CAPTIONS), theirs(CAPTIONS))
    assert tokenizer_of(backbone, 5)("a man").shape == (1, 16)


@pytest.mark.parametrize("cleaning", ["lower", "canonicalize", "whitespace"])
def test_cleaning(cleaning: str) -> None:
    expected = {
        "lower": "two dogs & a_cat: <b>", "canonicalize": "two dogs a cat b", "whitespace": "Two DOGS & a_cat: <b>"
    }  # fmt: skip
    assert clean(" Two  DOGS &amp;\n a_cat: &lt;b&gt; ", cleaning) == expected[cleaning]
    with pytest.raises(ValueError, match="the cleaning of texts must be one of lower, canonicalize, whitespace"):
        Tokens(cleaning="upper")


def test_a_control_token_spelled_out_ends_nothing(xlm: tuple[Path, Backbone]) -> None:
    tokenizer = tokenizer_of(xlm[1], 32)
    row, runs = tokenizer("<s> a cat </s> runs")[0].tolist(), tokenizer.words("runs")
    end = row.index(2)
    assert (row.count(0), row.count(2), row[0], row[end - len(runs) : end]) == (1, 1, 0, runs)


def test_padding_on_the_left(tmp_path: Path) -> None:
    size = write_siglip_tokenizer(tmp_path, "left")
    architecture = replace(TINY, vocab_size=size, text=TextParts(causal=False, end="last"))
    backbone = Backbone(architecture, tokens=Tokens(OWN_FILES, "lower", "last", places=(str(tmp_path),)))
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=16, clean="lower")
    assert torch.equal(tokenizer_of(backbone, 16)(CAPTIONS), theirs(CAPTIONS))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("T5Tokenizer", {"extra_ids": 0}),
        ("GemmaTokenizer", {"add_bos_token": False, "add_eos_token": True}),
        ("XLMRobertaTokenizer", {}),
    ],
)
def test_classes_of_published_tokenizers(tmp_path: Path, kind: str, settings: dict[str, object]) -> None:
    """transformers builds some kinds anew from the vocabulary."""
    of_xlm = kind == "XLMRobertaTokenizer"
    size = (write_xlm_tokenizer if of_xlm else write_siglip_tokenizer)(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": kind, **settings}))
    text = TextParts(end="id 2") if of_xlm else TextParts(causal=False, end="last")
    tokens = Tokens(OWN_FILES, "lower", text.end, places=(str(tmp_path),))
    backbone = Backbone(replace(TINY, context_length=40, vocab_size=size, text=text), tokens=tokens)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=40, clean="lower")
    assert type(theirs.tokenizer).__name__ == kind
    assert torch.equal(tokenizer_of(backbone, 40)(CAPTIONS), theirs(CAPTIONS))


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    """The first SigLIP's tokenizer in transformers has no part in Rust; it removes punctuation itself."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="makes a SentencePiece model")
    pytest.importorskip("google.protobuf", reason="transformers reads SentencePiece models with it")
    (tmp_path / "words.txt").write_text("\n".join(" ".join(text.split()).lower() for text in CAPTIONS[::2]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=150, pad_id=-1, bos_id=-1,
        eos_id=1, unk_id=2, control_symbols=["<pad>"], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    words = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer", **words}))
    text = TextParts(causal=False, end="last")
    tokens = Tokens(OWN_FILES, "lower", "last", places=(str(tmp_path),))
    backbone = Backbone(replace(TINY, context_length=40, vocab_size=200, text=text), tokens=tokens)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=40, clean="lower")
    assert not theirs.tokenizer.is_fast
    ours = tokenizer_of(backbone, 40)
    assert torch.equal(ours(CAPTIONS), theirs(CAPTIONS))
    assert (ours.before, ours.after, ours.pad) == ((), (1,), 1)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(CAPTIONS), ours(CAPTIONS))
    assert ours.words("A dog, running!") == ours.words("a dog running")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_siglip_tokenizer(tmp_path)

    def needs(*_: object, **__: object) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", needs)
    tokens = Tokens(OWN_FILES, "lower", "last", places=(str(tmp_path),))
    with pytest.raises(ValueError, match=r"requires the SentencePiece library\): install it; .* pip install sentencep"):
        tokenizer_of(Backbone(TINY, tokens=tokens), 12)


def test_many_captions_at_once_give_the_same_words(
    siglip: tuple[Path, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.hub_tokenizer.AT_ONCE", 60)
    tokenizer = tokenizer_of(siglip[1], 12)
    assert list(tokenizer.words_of_all(CAPTIONS)) == [tokenizer.words(text) for text in CAPTIONS]
    cut = count_cut(CAPTIONS, tokenizer, 12)
    longest = max(len(tokenizer.words(text)) for text in CAPTIONS) + 1
    assert (cut.captions, cut.longest) == (200, longest)
    assert cut.cut == sum(len(tokenizer.words(text)) > 11 for text in CAPTIONS)


def test_it_travels_to_data_workers_without_transformers(siglip: tuple[Path, Backbone]) -> None:
    tokenizer = tokenizer_of(siglip[1], 20)
    packed = pickle.dumps(tokenizer)
    assert b"transformers" not in packed
    assert torch.equal(pickle.loads(packed)(CAPTIONS), tokenizer(CAPTIONS))


@pytest.mark.parametrize("max_words", [2, 65])
def test_impossible_lengths_are_refused(siglip: tuple[Path, Backbone], max_words: int) -> None:
    with pytest.raises(ValueError, match=rf"--max_words must be in 3\.\.64 .* not {max_words}"):
        tokenizer_of(siglip[1], max_words)


class TestWhatItIs:
    """The files' content is part of what identifies a backbone; CLIP's identity is that of earlier versions."""

    def test_the_identity_of_openai_s_clip_stays(self) -> None:
        backbone = Backbone(ARCHITECTURES["ViT-B/32"])
        assert backbone.facts()["tokens"] == {"encoding": "CLIP's byte pairs", "cleaning": "lower", "end": "largest id"}
        assert backbone.sha256() == "e5c2f61be594d8b5a8af119f66835b5eb6b68990b49cc6de4b59ba282933cfde"
        assert "tokens (CLIP's byte pairs)" in str(backbone)

    def test_another_tokenizer_is_another_backbone(self, siglip: tuple[Path, Backbone], tmp_path: Path) -> None:
        folder, backbone = siglip
        clip = CLIP(backbone.architecture, backbone)
        find_tokenizer(clip, "tiny")
        first = clip.backbone
        assert first.tokens.sha256 == files_sha256(folder)
        assert f"sha256 {first.tokens.sha256[:12]}" in str(first)
        assert "places" not in first.facts()["tokens"]
        shutil.copytree(folder, tmp_path / "moved")
        moved = replace(backbone, tokens=replace(backbone.tokens, places=(str(tmp_path / "moved"),)))
        same = CLIP(backbone.architecture, moved)
        same.load_state_dict(clip.state_dict())
        find_tokenizer(same, "tiny")
        assert same.backbone == first
        assert text_sha256(same) == text_sha256(clip)

        path = tmp_path / "moved" / "tokenizer.json"
        other = json.loads(path.read_text())
        other["model"]["vocab"][5], other["model"]["vocab"][6] = other["model"]["vocab"][6], other["model"]["vocab"][5]
        path.write_text(json.dumps(other))
        for use in (lambda: tokenizer_of(same.backbone, 20), lambda: find_tokenizer(same, "tiny")):
            with pytest.raises(
                ValueError, match=rf"not the one that these weights have \(sha256 {first.tokens.sha256[:12]}"
            ):
                use()
        same.backbone = moved
        find_tokenizer(same, "tiny")
        assert same.backbone.sha256() != first.sha256()
        assert text_sha256(same) != text_sha256(clip)
        (difference,) = same.backbone.differences(first.facts())
        assert difference.startswith(f"tokens sha256 is {first.tokens.sha256[:12]} there and ")

    def test_parts_of_a_text_tower_change_its_features(self) -> None:
        one, other = (tiny_clip(architecture=replace(TINY, text=TextParts(end=end))) for end in ("last", "id 2"))
        assert len({text_sha256(clip) for clip in (one, other, tiny_clip())}) == 3

    def test_a_vocabulary_that_no_tokenizer_is_named_for(self) -> None:
        with pytest.raises(
            ValueError, match=r"^tiny\.pt: its text tower has a vocabulary of 100 tokens .* pass the folder of"
        ):
            find_tokenizer(CLIP(replace(TINY, vocab_size=100)), "tiny.pt")


class TestFiles:
    @pytest.fixture
    def named(self, xlm: tuple[Path, Backbone], tmp_path: Path) -> Backbone:
        """A backbone whose tokenizer is that of a repository, beside the weights or in `pretrained`."""
        places = tuple(str(tmp_path / place) for place in ("weights", "pretrained/xlm"))
        return replace(xlm[1], tokens=Tokens("somebody/xlm", "whitespace", "id 2", places=places))

    @pytest.mark.parametrize("place", ["weights", "pretrained/xlm"])
    def test_in_a_folder(self, named: Backbone, xlm: tuple[Path, Backbone], tmp_path: Path, place: str) -> None:
        shutil.copytree(xlm[0], tmp_path / place)
        assert torch.equal(tokenizer_of(named, 20)(CAPTIONS), tokenizer_of(xlm[1], 20)(CAPTIONS))

    def test_in_the_cache_of_the_hub(
        self, named: Backbone, xlm: tuple[Path, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = tmp_path / "cache" / "models--somebody--xlm"
        shutil.copytree(xlm[0], cache / "snapshots" / "abc")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        assert torch.equal(tokenizer_of(named, 20)(CAPTIONS), tokenizer_of(xlm[1], 20)(CAPTIONS))

    def test_downloaded(
        self, named: Backbone, xlm: tuple[Path, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def download(repository: str, allow_patterns: list[str]) -> str:
            asked.extend([repository, *allow_patterns])
            return str(xlm[0])

        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert isinstance(tokenizer_of(named, 20), HubTokenizer)
        assert asked[:2] == ["somebody/xlm", "tokenizer.json"]

    def test_offline_the_error_says_what_to_fetch(
        self, named: Backbone, xlm: tuple[Path, Backbone], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
        with pytest.raises(FileNotFoundError, match=r"the Hugging Face repository somebody/xlm, .*Name or s") as told:
            tokenizer_of(named, 20)
        files, _, places = str(told.value).partition("fetch ")[2].partition(", all that are there, and put them into ")
        place = Path(places.removesuffix(".").split(" or ")[1])
        assert place == Path(named.tokens.places[1])
        place.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert name in files
            shutil.copy(xlm[0] / name, place)
        assert isinstance(tokenizer_of(named, 20), HubTokenizer)

    def test_a_folder_that_names_no_repository(self, xlm: tuple[Path, Backbone], tmp_path: Path) -> None:
        tokens = Tokens(OWN_FILES, "whitespace", "id 2", places=(str(tmp_path),))
        message = rf"not beside the weights: fetch tokenizer_config\.json .* of tokenizer\.json, .* into {tmp_path}"
        with pytest.raises(FileNotFoundError, match=message):
            tokenizer_of(replace(xlm[1], tokens=tokens), 20)

    def test_without_transformers(
        self, xlm: tuple[Path, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(xlm[0], tmp_path / "new")  # those of other folders are read already
        monkeypatch.setitem(sys.modules, "transformers", None)
        tokens = replace(xlm[1].tokens, places=(str(tmp_path / "new"),))
        with pytest.raises(ValueError, match=r"needs transformers .*: pip install transformers"):
            tokenizer_of(replace(xlm[1], tokens=tokens), 20)

    def test_a_damaged_file(self, xlm: tuple[Path, Backbone], tmp_path: Path) -> None:
        shutil.copytree(xlm[0], tmp_path / "new")
        (tmp_path / "new" / "tokenizer.json").write_text("{")
        tokens = replace(xlm[1].tokens, places=(str(tmp_path / "new"),))
        with pytest.raises(ValueError, match=r"transformers cannot read the tokenizer in .*new \(.*fetch its files"):
            tokenizer_of(replace(xlm[1], tokens=tokens), 20)

    def test_a_setting_of_a_wrong_kind(self, xlm: tuple[Path, Backbone], tmp_path: Path) -> None:
        shutil.copytree(xlm[0], tmp_path / "new")
        settings = tmp_path / "new" / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": [1]}))
        tokens = replace(xlm[1].tokens, places=(str(tmp_path / "new"),))
        with pytest.raises(ValueError, match=r"transformers cannot read the tokenizer in .*new \(.*fetch its files"):
            tokenizer_of(replace(xlm[1], tokens=tokens), 20)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vocab_size": 40}, r"tokens and the text tower 40: it belongs to other weights"),
            ({"text": TextParts(end="id 3")}, r"ends a text with \[2\] and the text tower is read at END 3"),
        ],
    )
    def test_a_tokenizer_of_other_weights(
        self, xlm: tuple[Path, Backbone], change: dict[str, object], message: str
    ) -> None:
        backbone = replace(xlm[1], architecture=replace(xlm[1].architecture, **change))
        with pytest.raises(ValueError, match=message):
            tokenizer_of(backbone, 20)


def test_a_clip_of_openai_has_clips_tokenizer() -> None:
    tokenizer = tokenizer_of(Backbone(ARCHITECTURES["ViT-B/32"]), 32)
    assert type(tokenizer) is Tokenizer
    assert torch.equal(tokenizer(CAPTIONS), open_clip.tokenize(CAPTIONS, context_length=32))
