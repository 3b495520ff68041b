"""The parts of T-MASS beside CLIP (`modules.methods.t_mass`):

draws       random numbers that depend on nothing but the pair and the trial they are for
pooling     the frames of a video, pooled for each text
"""
