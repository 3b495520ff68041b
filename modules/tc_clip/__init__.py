"""The parts of TC-CLIP beside CLIP (`modules.methods.tc_clip`):

context     context tokens: the patches of all frames that matter, merged, and attention to them
prompts     prompts of the texts that depend on the video, and the end of the text tower
"""
