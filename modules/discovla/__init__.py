"""Parts that only DiscoVLA (`modules.methods.discovla`) uses."""
