"""The parts of STAN and Mug-STAN, in reading order.

branch        the branch beside CLIP: its levels, and where it begins
temporal      the cross-frame part of a level: self-attention, or the paper's convolution
drop_path     what a level drops in training
time_table    one row for each frame, and rows between them
released      key names of released checkpoints
"""
