"""All methods, by the name that `--method` takes. To add a method, add a file to this folder and a line here."""

from collections.abc import Mapping
from typing import Any

from modules.clip import CLIP
from modules.methods.adapter_attn import AdapterATTN
from modules.methods.adapter_ffn import AdapterFFN
from modules.methods.base import Method, method_options
from modules.methods.bias import Bias
from modules.methods.clip4clip import CLIP4Clip
from modules.methods.dgl import DGL
from modules.methods.discovla import DiscoVLA
from modules.methods.efficient_prompt import EfficientPrompt
from modules.methods.lora import LoRAMethod
from modules.methods.mug_stan import MugSTAN
from modules.methods.mv_adapter import MVAdapter
from modules.methods.stan import STAN
from modules.methods.stdd import STDD
from modules.methods.stop import STOP
from modules.methods.stop_released import STOPReleased
from modules.methods.t_mass import TMASS
from modules.methods.tc_clip import TCCLIP
from modules.methods.tempme import TempMe
from modules.methods.unipt import UniPT
from modules.methods.upt import UPT
from modules.methods.video_text_adapter import VideoTextAdapter
from modules.methods.visual_text_adapter import VisualTextAdapter
from modules.methods.vop import VoP
from modules.methods.vop_fc import VoPFC
from modules.methods.vpt import VPT
from modules.options import check_options
from modules.quoting import shorten

METHODS: dict[str, type[Method]] = {
    "stop": STOP,
    "stop_released": STOPReleased,
    "clip4clip": CLIP4Clip,
    "dgl": DGL,
    "vpt": VPT,
    "upt": UPT,
    "vop": VoP,
    "vop_fc": VoPFC,
    "efficient_prompt": EfficientPrompt,
    "bias": Bias,
    "adapter_attn": AdapterATTN,
    "adapter_ffn": AdapterFFN,
    "visual_text_adapter": VisualTextAdapter,
    "video_text_adapter": VideoTextAdapter,
    "unipt": UniPT,
    "mv_adapter": MVAdapter,
    "stdd": STDD,
    "stan": STAN,
    "mug_stan": MugSTAN,
    "t_mass": TMASS,
    "tc_clip": TCCLIP,
    "lora": LoRAMethod,
    "tempme": TempMe,
    "discovla": DiscoVLA,
}


def build_method(name: str, clip: CLIP, **options: Any) -> Method:
    """Build the method `name` around `clip`, which it takes over; `options` are the method's own settings.

    Raises:
        ValueError: for an unknown method or option, or a value that is out of range or not one of the choices.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {shorten(repr(name))}; the methods are: {', '.join(METHODS)}")
    declared = method_options(METHODS[name])
    known = [option.name for option in declared]
    unknown = [option for option in options if option not in known]
    if unknown:
        reason = METHODS[name].not_offered.get(unknown[0])
        raise ValueError(
            f"method {name} has no option {shorten(repr(unknown[0]))}"
            + (f": it {reason}" if reason else f"; its options are: {', '.join(known) or 'none'}")
        )
    check_options(declared, options)
    return METHODS[name](clip, **options)


def why_unknown(name: str, option: str) -> str | None:
    """Return why the method `name` has no such option, to follow its name, or None if nothing is known about it.

    Another method may have it, or the method's published code, of which it is a part that is not offered here.
    """
    if name in METHODS and (reason := METHODS[name].not_offered.get(option)):
        return reason
    owners = [other for other, method in METHODS.items() if option in {own.name for own in method_options(method)}]
    return f"is a setting of --method {', '.join(owners)}, but the method here is {name}" if owners else None


def options_for(name: str, max_frames: int) -> dict[str, int]:
    """Return the options with which the method `name` takes clips of this many frames: {} if it takes any."""
    takes_any = all(option.name != "max_frames" for option in method_options(METHODS[name]))
    return {} if takes_any else {"max_frames": max_frames}


def without_newer(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the method `name` without those that `Method.newer` names and that have their default."""
    method = METHODS[name]
    newer = {option.name: option.default for option in method_options(method) if option.name in method.newer}
    return {option: value for option, value in options.items() if option not in newer or value != newer[option]}


__all__ = ["METHODS", "Method", "build_method", "method_options", "options_for", "why_unknown", "without_newer"]
