"""Train the small CLIP of the made world, on still images only, or a small backbone of another family.

    python preprocess/train_small_clip.py --output pretrained/moving_shapes_clip.safetensors --seed 0
    python preprocess/train_small_clip.py --output pretrained/moving_shapes_clip_p14.safetensors --patch_size 14
    python preprocess/train_small_clip.py --family pe      # pretrained/moving_shapes_pe.safetensors
    python preprocess/train_small_clip.py --family siglip  # pretrained/moving_shapes_siglip.safetensors

The second has an even grid of patches, 8 x 8 instead of 7 x 7, which some methods need. The others see the same stills
and captions and have the same sizes, but the towers, pixels and similarity of Perception Encoder and of SigLIP 2
(`FAMILIES`). SigLIP's is trained with its own loss. Both have CLIP's byte pairs as their tokenizer.

Training is contrastive like CLIP's (Radford et al., ICML 2021, sections 2.3 to 2.5), on stills of moving shapes that
are drawn when they are needed. Some stills have a sign, such as an arrow, that stands for a motion, and a caption with
the words for it. So the text tower tells the motion words apart, but neither tower has ever seen a thing move. Contents
that are held out for the test videos are held out here too and measure what was learned.

The weights are written in half precision under OpenAI's key names, with all facts of the backbone in the header and a
log beside them (same path, ending in .log).

Shapes: N stills of a batch, S image side in pixels, L tokens, E joint embedding.
"""

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.transforms import normalise
from engine.flags import check_file, finite_float
from engine.messages import print_error
from modules.backbones import Backbone
from modules.clip import CLIP
from modules.clip_weights import to_openai_keys
from modules.losses import Loss, SigmoidLoss, build_loss
from modules.seal import seal
from modules.similarity import cosine_similarity
from modules.stated_backbone import BACKBONE
from modules.tokenizer import Tokenizer
from preprocess.moving_shapes.stills import Still, draw_stills, plain_still
from preprocess.moving_shapes.stories import COLOURS, SHAPES, Story, caption, draw_story, draw_thing
from preprocess.small_backbones import ARCHITECTURE, FAMILIES

WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
LOSS_LR = 10  # times --lr for SigLIP's scale and bias, which have far to go in few steps
MAX_LOGIT_SCALE = math.log(100.0)
HELD_OUT_STILLS = 256
OUTLINES_KNOWN = 0.6  # share of correct shapes at which another colour is added
PLAIN_MOTIONS = ("right", "up", "grow")  # staged in any place and size


class Log:
    """Prints lines and keeps them for a file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        tqdm.write(line)
        self.lines.append(line)


def to_batch(stills: Sequence[Still], tokenize: Tokenizer, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return pixels float [N,3,S,S], normalised for the backbone, and token ids int64 [N,L], L as short as possible."""
    token_ids = tokenize([still.caption for still in stills])
    if backbone.architecture.text.causal:  # no token that counts sees what follows the longest caption's END
        token_ids = token_ids[:, : int((token_ids > 0).sum(dim=1).max())]
    return to_pixels(stills, backbone), token_ids


def to_pixels(stills: Sequence[Still], backbone: Backbone) -> Tensor:
    """Return the pixels of stills, float [N,3,S,S], normalised for the backbone."""
    pixels = torch.from_numpy(np.stack([still.image for still in stills])).permute(0, 3, 1, 2).contiguous()
    return normalise(pixels, backbone.preprocessing.mean, backbone.preprocessing.std)


def learn_outlines(clip: CLIP, steps: int, batch_size: int, lr: float, seed: int, log: Log) -> None:
    """Teach the vision tower the outlines of things from labels, in place, before it sees any caption.

    Colour is much easier to see than outline: contrastive batches of all colours hardly teach the tower shapes, whereas
    within one colour it learns them in minutes. So the stills begin with one colour and get another one as soon as the
    tower tells the shapes apart in the colours so far.
    """
    rng, colours, shapes = np.random.default_rng([seed, 4]), list(COLOURS), list(SHAPES)
    model = nn.Sequential(clip.visual, nn.Linear(ARCHITECTURE.embed_dim, len(shapes)))
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=lr, betas=BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0, 4 * (steps - step) / steps)
    )
    in_use = 1
    right: list[float] = []
    for _ in tqdm(range(steps), desc="outlines", unit="step", mininterval=5):
        stories: list[Story] = []
        while len(stories) < batch_size:
            thing = replace(draw_thing(rng), colour=colours[rng.integers(in_use)])
            story = Story((thing,), (str(rng.choice(PLAIN_MOTIONS)),))
            if not story.held_out:
                stories.append(story)
        pixels = to_pixels([plain_still(story, rng, ARCHITECTURE.image_size) for story in stories], clip.backbone)
        labels = torch.tensor([shapes.index(story.things[0].shape) for story in stories])
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(pixels).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right.append((logits.argmax(dim=1) == labels).float().mean().item())
        if len(right) >= 40 and np.mean(right[-40:]) > OUTLINES_KNOWN and in_use < len(colours):
            in_use, right = in_use + 1, []
    log(f"outlines: {in_use} of {len(colours)} colours in use, {100 * np.mean(right[-100:]):.1f} % of shapes right")


def parameter_groups(model: nn.Module) -> list[dict]:
    """Return optimizer groups: matrices with weight decay; biases, gains and the temperature without."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def learning_rate_share(step: int, steps: int, warm_up: int) -> float:
    """Return the share of the peak rate: linear warm-up to 1, then half a cosine down to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def train(
    model: CLIP, tokenize: Tokenizer, steps: int, batch_size: int, learning_rate: float, seed: int, log: Log
) -> Tensor:
    """Train `model` in place; returns bool [vocabulary], the tokens that occurred in a caption."""
    stills = draw_stills(np.random.default_rng([seed, 0]), ARCHITECTURE.image_size)
    loss_of, scale = start_loss(model, batch_size)
    groups = parameter_groups(model)
    if list(loss_of.parameters()):
        groups.append({"params": loss_of.parameters(), "lr": LOSS_LR * learning_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
    warm_up = min(100, max(1, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps, warm_up))
    seen = torch.zeros(ARCHITECTURE.vocab_size, dtype=torch.bool)
    losses: list[float] = []
    model.train()
    progress = tqdm(range(1, steps + 1), desc="training", unit="step", mininterval=5)
    for step in progress:
        pixels, token_ids = to_batch(list(islice(stills, batch_size)), tokenize, model.backbone)
        seen[token_ids.unique()] = True
        # In half precision torch's plain attention is faster than its fused one at this size on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            images, texts = model.visual(pixels), model.text(token_ids)
        loss = loss_of(cosine_similarity(texts, images, model.logit_scale))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            scale.clamp_(max=MAX_LOGIT_SCALE)
        losses.append(loss.item())
        if step % max(steps // 20, 1) == 0:
            recent = float(np.mean(losses[-100:]))
            log(f"step {step}/{steps}: loss {recent:.3f}, temperature {1 / scale.exp().item():.4f}{bias_of(loss_of)}")
    if isinstance(loss_of, SigmoidLoss):
        model.load_state_dict(loss_of.state_dict(), strict=False)
    return seen


def start_loss(model: CLIP, batch_size: int) -> tuple[Loss, nn.Parameter]:
    """Return the loss of the model's similarity and the logarithm of its scale, both fresh.

    SigLIP's bias starts at -10, about minus the logarithm of the wrong captions of an image in its batches of 32,768.
    Here there are fewer: from -10 and a scale of 10, no pair is more likely right than wrong until they have moved. So
    we start at minus the logarithm of ours.
    """
    if model.backbone.similarity == "softmax":
        return build_loss("symmetric_info_nce", model), model.logit_scale
    model.logit_scale.requires_grad_(False)
    loss = SigmoidLoss(model)  # trains a scale and a bias of its own
    with torch.no_grad():
        loss.logit_scale.fill_(math.log(10.0))  # as published
        loss.logit_bias.fill_(-math.log(batch_size - 1))
    return loss, loss.logit_scale


def bias_of(loss: Loss) -> str:
    """Return the bias of SigLIP's loss for the log; nothing for another loss."""
    return f", bias {loss.logit_bias.item():.2f}" if isinstance(loss, SigmoidLoss) else ""


@torch.no_grad()
def embed(model: CLIP, pixels: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit embeddings of images and texts, each [N,E]."""
    model.eval()
    return F.normalize(model.visual(pixels), dim=-1), F.normalize(model.text(token_ids), dim=-1)


def _distinct(stills: Iterator[Still], signed: bool, n: int) -> list[Still]:
    """Return `n` stills, signed or not. No caption fits another still, but twins of signed stills may occur."""
    found: dict[object, Still] = {}
    for still in stills:
        if still.signed == signed:
            key: object = still.story if signed else frozenset(still.story.things)
            found.setdefault(key, still)
        if len(found) == n:
            break
    return list(found.values())


def _twin_captions(n: int, rng: np.random.Generator) -> list[tuple[Story, str, str]]:
    twins = []
    for _ in range(n):
        story = draw_story(rng, held_out=True)
        state = rng.bit_generator.state
        forwards = caption(story, rng)
        rng.bit_generator.state = state
        twins.append((story, forwards, caption(story.reversed(), rng)))
    return twins


def _zero_shot(model: CLIP, tokenize: Tokenizer, rng: np.random.Generator, name: str, choices: list[str]) -> float:
    """Return how often a still is nearest to its caption, among copies of it with every colour (or shape) in it."""
    stream = draw_stills(rng, ARCHITECTURE.image_size, signed_share=0.0, held_out=True)
    stills = list(islice((still for still in stream if len(still.story.things) == 1), HELD_OUT_STILLS))
    words = [getattr(still.story.things[0], name) for still in stills]
    texts = [
        still.caption.replace(word, choice) for still, word in zip(stills, words, strict=True) for choice in choices
    ]
    images, candidates = embed(model, to_pixels(stills, model.backbone), tokenize(texts))
    cosines = torch.einsum("ne,nce->nc", images, candidates.unflatten(0, (len(stills), len(choices))))
    right = torch.tensor([choices.index(word) for word in words])
    return (cosines.argmax(dim=1) == right).float().mean().item()


def evaluate(model: CLIP, tokenize: Tokenizer, seed: int, log: Log) -> None:
    """Log what the model knows about contents it was not trained on."""
    for signed in (False, True):
        stream = draw_stills(np.random.default_rng([seed, 1]), ARCHITECTURE.image_size, held_out=True)
        stills = _distinct(stream, signed, HELD_OUT_STILLS)
        images, texts = embed(model, *to_batch(stills, tokenize, model.backbone))
        cosines = images @ texts.T
        right = cosines.argmax(dim=1) == torch.arange(len(stills))
        name = "with signs" if signed else "without signs"
        log(f"held-out stills {name}: image to caption R@1 {100 * right.float().mean():.1f} % of {len(stills)}")
        if not signed:
            continue
        number = {still.story: i for i, still in enumerate(stills)}
        pairs = [(i, number[story.reversed()]) for story, i in number.items() if story.reversed() in number]
        own, twin = torch.tensor(pairs).T
        closer = (cosines[own, own] > cosines[own, twin]).float()
        log(f"held-out stills with signs: nearer to the own caption than to the twin's {100 * closer.mean():.1f} %")
        families = np.array([stills[i].story.family for i, _ in pairs])
        for family in sorted(set(families)):
            part = closer[torch.from_numpy(families == family)]
            log(f"  {family}: {100 * part.mean():.1f} % of {len(part)}")

    for name, choices in (("colour", COLOURS), ("shape", SHAPES)):
        share = _zero_shot(model, tokenize, np.random.default_rng([seed, 3]), name, list(choices))
        log(f"held-out stills of one thing: {name} right in {100 * share:.1f} %, chance {100 / len(choices):.1f} %")

    twins = _twin_captions(1024, np.random.default_rng([seed, 2]))
    with torch.no_grad():
        forwards = F.normalize(model.text(tokenize([text for _, text, _ in twins])), dim=-1)
        backwards = F.normalize(model.text(tokenize([text for _, _, text in twins])), dim=-1)
    cosines = (forwards * backwards).sum(dim=-1)
    log(f"cosine between the captions of a story and its reversal: mean {cosines.mean():.3f} of {len(twins)}")
    families = np.array([story.family for story, _, _ in twins])
    for family in sorted(set(families)):
        part = cosines[torch.from_numpy(families == family)]
        log(f"  {family}: mean {part.mean():.3f}, highest {part.max():.3f}")
    shuffled = (forwards * forwards.roll(1, dims=0)).sum(dim=-1)
    log(f"cosine between the captions of two stories drawn apart: mean {shuffled.mean():.3f}")


def save(model: CLIP, seen: Tensor, path: Path, seed: int) -> None:
    """Write the weights in half precision under OpenAI's keys, sealed; rows of tokens never seen become zero."""
    with torch.no_grad():
        model.text.token_embedding.weight[~seen] = 0.0
    state = {key: tensor.half().contiguous() for key, tensor in to_openai_keys(model.state_dict()).items()}
    partial = path.with_name(path.name + ".partial")
    metadata = {BACKBONE: json.dumps(model.backbone.facts()), "seed": str(seed)}
    save_file(state, partial, metadata=seal(state, metadata))
    partial.replace(path)


def run(options: argparse.Namespace) -> None:
    """Train and evaluate a CLIP, then write the weights and the log."""
    options.output = options.output or Path(f"pretrained/moving_shapes_{options.family}.safetensors")
    if options.output.suffix != ".safetensors":
        raise ValueError(f"--output {options.output} must end in .safetensors.")
    for name, low in (("steps", 1), ("outline_steps", 1), ("batch_size", 2), ("seed", 0)):
        if getattr(options, name) < low:
            raise ValueError(f"--{name} must be {low} or more, not {getattr(options, name)}.")
    if not 0 < options.lr < 1:
        raise ValueError(f"--lr must lie between 0 and 1, not {options.lr}.")
    side = ARCHITECTURE.image_size
    if options.patch_size < 1 or side % options.patch_size:
        divisors = ", ".join(str(size) for size in range(1, side + 1) if side % size == 0)
        raise ValueError(
            f"--patch_size must divide the {side} pixels of an image's side, but is {options.patch_size}; pass one of "
            f"{divisors}."
        )
    check_file("--output", options.output)
    options.output.parent.mkdir(parents=True, exist_ok=True)

    log = Log()
    log(f"command: python preprocess/train_small_clip.py {shlex.join(options.arguments)}")
    log(f"seed {options.seed}, {options.steps} steps of {options.batch_size} stills, lr {options.lr:g}")
    log(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} thread(s)")
    torch.manual_seed(options.seed)
    backbone = FAMILIES[options.family]
    architecture = replace(backbone.architecture, patch_size=options.patch_size)
    model = CLIP(architecture, replace(backbone, architecture=architecture))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    words = model.text.token_embedding.weight.numel()
    log(f"{model.architecture}")
    log(f"{parameters:,} parameters, {words:,} of them token embeddings")
    tokenize = Tokenizer(ARCHITECTURE.context_length)
    start = time.monotonic()
    learn_outlines(model, options.outline_steps, options.batch_size, options.lr, options.seed, log)
    seen = train(model, tokenize, options.steps, options.batch_size, options.lr, options.seed, log)
    log(f"trained in {time.monotonic() - start:.0f} s; {int(seen.sum())} tokens seen, the other rows set to 0")
    save(model, seen, options.output, options.seed)
    evaluate(model, tokenize, options.seed, log)
    log(f"{options.output.name}: {options.output.stat().st_size:,} bytes")
    options.output.with_suffix(".log").write_text("\n".join(log.lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train the small CLIP of the made world on still images.")
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        default="clip",
        help="clip: CLIP's towers; pe: Perception Encoder's, with rotary positions and an attention pool; siglip: "
        "SigLIP 2's, without a class token, trained with the sigmoid loss (default: clip)",
    )
    parser.add_argument(
        "--output", type=Path, help="weights to write (default: pretrained/moving_shapes_FAMILY.safetensors)"
    )
    parser.add_argument(
        "--patch_size",
        type=int,
        default=ARCHITECTURE.patch_size,
        help="side of a patch in pixels: 16 makes an odd grid of 7 x 7 patches, 14 an even one of 8 x 8 (default: 16)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outline_steps", type=int, default=1800, help="steps with labels, on outlines alone")
    parser.add_argument("--steps", type=int, default=3000, help="contrastive steps, on stills with captions")
    parser.add_argument("--batch_size", type=int, default=64, help="stills in each step")
    parser.add_argument("--lr", type=finite_float, default=1e-3, help="highest learning rate")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    options.arguments = arguments
    try:
        run(options)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
