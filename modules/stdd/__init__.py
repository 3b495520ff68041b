"""The temporal parts of STDD's vision tower, in reading order.

cross_attention     space-time cross attention (STCA), the paper's block
masks, mixing       its two ingredients: which tokens of a frame it drops, and which channels it takes from other frames
variants            what the released code offers in its place
distillation        the paper's term that holds frames near those of the frozen CLIP
neighbours          values of earlier and later frames
"""
